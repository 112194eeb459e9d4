// Names the picture: node examples/generate.mjs picture.png [model folder]
import { batchOf, decodeImage, generate, loadModel, loadTokenizer, preprocessImage } from 'mmmamba';

const [picture, folder = 'models/emoji-teacher'] = process.argv.slice(2);
if (!picture) throw new Error('usage: node examples/generate.mjs picture.png [model folder]');
const [model, tokenizer] = [await loadModel(folder), await loadTokenizer(folder)];
const { imageSize, patchSize } = model.config.vision;
const { pixelValues } = preprocessImage(await decodeImage(picture), { imageSize, maxNum: 1 });

const id = (token) => tokenizer.tokenId(token);
const image = [id('<img>'), ...new Array((imageSize / patchSize) ** 2 / 4).fill(id('<IMG_CONTEXT>')), id('</img>')];
const prompt = batchOf([[tokenizer.bosId, ...image, ...tokenizer.encode('what is this ?')]], { pixelValues, imageFlags: [1] });
for await (const { tokens } of generate(model, prompt, { maxTokens: 8, stopTokens: [tokenizer.eosId] }))
  if (tokens[0] !== tokenizer.eosId) process.stdout.write(`${tokenizer.decode([tokens[0]])} `);
process.stdout.write('\n');
model.dispose();
