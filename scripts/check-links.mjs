// Follows every link between files: of the API reference in api/ (`npm run docs` makes it) and of the Markdown files. A target must be
// there, with its anchor. Links into the web are left alone: nothing here may depend on it.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';

const root = join(import.meta.dirname, '..');
const api = join(root, 'api');
if (!existsSync(api)) {
  console.error('mmmamba: there is no API reference: run npm run docs first');
  process.exit(1);
}
const html = readdirSync(api, { recursive: true }).filter((name) => name.endsWith('.html')).map((name) => join(api, name));
const markdown = execFileSync('git', ['ls-files', '*.md'], { cwd: root, encoding: 'utf8' }).trim().split('\n').map((name) => join(root, name));

const unescape = (text) => text.replaceAll('&amp;', '&').replaceAll('&lt;', '<').replaceAll('&gt;', '>').replaceAll('&quot;', '"');
const slug = (heading) => heading.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, '').trim().replace(/\s/g, '-');

const known = new Map();
function anchors(path) {
  if (!known.has(path)) {
    const text = readFileSync(path, 'utf8');
    const found = path.endsWith('.md') ? [...text.matchAll(/^#+\s+(.*)$/gm)].map(([, heading]) => slug(heading)) : [...text.matchAll(/\sid="([^"]+)"/g)].map(([, id]) => unescape(id));
    known.set(path, new Set(found));
  }
  return known.get(path);
}

const broken = [];
let links = 0;
for (const path of [...html, ...markdown]) {
  const text = readFileSync(path, 'utf8');
  const found = path.endsWith('.md') ? text.replace(/```[\s\S]*?```|`[^`\n]*`/g, '').matchAll(/\]\(([^)\s]+)\)/g) : text.matchAll(/\s(?:href|src)="([^"]+)"/g);
  for (const [, raw] of found) {
    const link = unescape(raw);
    if (/^(https?|mailto|data):/.test(link)) continue;
    links++;
    const [name, anchor] = link.split('#').map(decodeURIComponent);
    const target = name === '' ? path : join(dirname(path), name);
    if (!existsSync(target)) broken.push(`${relative(root, path)}: ${link} leads nowhere`);
    else if (anchor && statSync(target).isFile() && !anchors(target).has(anchor)) broken.push(`${relative(root, path)}: ${link} has no such anchor`);
  }
}
for (const line of broken) console.error(`mmmamba: ${line}`);
console.log(`${links} links in ${html.length} pages and ${markdown.length} Markdown files, ${broken.length} broken`);
if (broken.length > 0 || links === 0) process.exit(1);
