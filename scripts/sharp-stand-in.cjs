// Stands in for the package sharp where its native libraries are not carried (scripts/pack-gpu.mjs): it writes raw RGB as PNG, as
// reports do, and reads plain PNGs of 8 bits a channel, as the golden cases have them.
const { deflateSync, inflateSync } = require('node:zlib');

const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
const table = Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
const crc = (bytes) => ~bytes.reduce((c, b) => table[(c ^ b) & 255] ^ (c >>> 8), ~0) >>> 0;

function chunk(type, body) {
  const out = Buffer.alloc(12 + body.length);
  out.writeUInt32BE(body.length, 0);
  out.write(type, 4, 'latin1');
  body.copy(out, 8);
  out.writeUInt32BE(crc(out.subarray(4, 8 + body.length)), 8 + body.length);
  return out;
}

function encode(data, { width, height }) {
  const row = width * 3;
  const rows = Buffer.alloc(height * (row + 1)); // each begins with filter 0
  for (let y = 0; y < height; y++) data.copy(rows, y * (row + 1) + 1, y * row, (y + 1) * row);
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 2], 8);
  return Buffer.concat([signature, chunk('IHDR', head), chunk('IDAT', deflateSync(rows)), chunk('IEND', Buffer.alloc(0))]);
}

function paeth(a, b, c) {
  const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
  return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
}

/** (height, width, 3) u8 */
function decode(bytes) {
  const refuse = () => new Error('this is a stand-in for sharp: it reads plain PNGs of 8 bits a channel, with or without alpha');
  if (!signature.equals(bytes.subarray(0, 8))) throw refuse();
  let head;
  const parts = [];
  for (let at = 8; at < bytes.length; ) {
    const length = bytes.readUInt32BE(at);
    const type = bytes.toString('latin1', at + 4, at + 8);
    if (type === 'IHDR') head = bytes.subarray(at + 8, at + 21);
    if (type === 'IDAT') parts.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const [depth, colour, , , interlaced] = head.subarray(8);
  const channels = { 2: 3, 6: 4 }[colour];
  if (depth !== 8 || !channels || interlaced) throw refuse();
  const [width, height] = [head.readUInt32BE(0), head.readUInt32BE(4)];
  const packed = inflateSync(Buffer.concat(parts));
  const row = width * channels;
  const plain = Buffer.alloc(height * row);
  for (let y = 0; y < height; y++) {
    const filter = packed[y * (row + 1)];
    for (let x = 0; x < row; x++) {
      const at = y * row + x;
      const left = x >= channels ? plain[at - channels] : 0;
      const up = y ? plain[at - row] : 0;
      const corner = x >= channels && y ? plain[at - row - channels] : 0;
      plain[at] = packed[y * (row + 1) + 1 + x] + [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter];
    }
  }
  const data = Buffer.alloc(width * height * 3);
  for (let i = 0; i < width * height; i++) plain.copy(data, 3 * i, channels * i, channels * i + 3);
  return { data, info: { width, height, channels: 3 } };
}

function sharp(input, options = {}) {
  const bytes = Buffer.from(input.buffer ?? input, input.byteOffset, input.byteLength);
  if (options.raw) return { png: () => ({ toBuffer: async () => encode(bytes, options.raw) }) };
  const image = {
    metadata: async () => ({ format: 'png', space: 'srgb', ...decode(bytes).info }),
    removeAlpha: () => image,
    toColourspace: () => image,
    raw: () => ({ toBuffer: async () => decode(bytes) }),
  };
  return image;
}
sharp.versions = require('./versions.json');
module.exports = sharp;
