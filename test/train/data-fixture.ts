import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { EmojiSelection } from '../../lib/train/data/emoji/index.js';

/** The first `count` animals and foods of a selection: few enough to render in every test file. */
export function smallSelection(selection: EmojiSelection, count = 30): EmojiSelection {
  const wanted = new Set(['animals nature', 'food drink']);
  const kept = selection.names
    .map((name, index) => ({ name, index }))
    .filter(({ name }) => wanted.has(selection.groups[name.group].join(' ')))
    .slice(0, count);
  const place = new Map(kept.map(({ index }, now) => [index, now]));
  return {
    ...selection,
    names: kept.map(({ name }) => ({
      ...name,
      twins: name.twins.filter((twin) => place.has(twin)).map((twin) => place.get(twin)!),
    })),
  };
}

/** An empty folder, removed when the process ends. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'mmmamba-data-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
