import { MmError } from '../../../native/errors.js';
import { artists, plainHexcode, readCodePoints, readIconSet, readPackageJson } from './artists.js';
import type { Artist, IconSet } from './artists.js';

/**
 * The names of the task. Rule: an icon name (no alias) that is drawn by at least `minArtists` of the six sets and by
 * the held-out artist, that does not begin with `flag` and carries no skin tone. With the packages that the lock file
 * names and fluent-emoji-flat held out this gives 1,168 names and 5,703 drawings by the other artists.
 *
 * The flag rule is the prefix, not emojibase's group "flags": the white, black, chequered, triangular and crossed
 * flags are ordinary pictures and stay; `flag-in-hole` (golf) goes, its name begins like that of a country's flag.
 */
export interface EmojiName {
  /** iconify icon name: `red-apple` */
  icon: string;
  /** the name as words: `['red', 'apple']` */
  words: string[];
  /** the emoji's own code points as emojibase writes them: `1F34E` */
  hexcode: string;
  /** index into {@link EmojiSelection.groups} */
  group: number;
  /** emojibase's subgroup: `food-fruit` */
  subgroup: string;
  /** emojibase's tags */
  keywords: string[];
  /** who drew it, in the order of `artists` */
  artists: Artist[];
  /** indices of names that some artist gave the very same drawing (`man-biking`, `person-biking`) */
  twins: number[];
  /** true where a mirrored drawing still deserves the name */
  mirrors: boolean;
}

export interface EmojiSelection {
  heldOut: Artist;
  minArtists: number;
  /** sorted by icon name */
  names: EmojiName[];
  /** the groups that occur, as words: `['food', 'drink']` */
  groups: string[][];
  /** icon names left out because emojibase has no emoji for them; none at five artists, an artist's extras below three */
  unmatched: string[];
}

export interface SelectionOptions {
  /** the artist of the test set; default fluent-emoji-flat */
  heldOut?: Artist;
  /** default 5 */
  minArtists?: number;
  /** already read sets, to spare reading them twice */
  sets?: readonly IconSet[];
}

interface EmojibaseEntry {
  label: string;
  hexcode: string;
  tags?: string[];
  group?: number;
  subgroup?: number;
  skins?: { hexcode: string }[];
}

/** emojibase's group of parts that other emoji are made of: skin tones, hair. */
const componentGroup = 2;

interface EmojibaseGroups {
  groups: Record<string, string>;
  subgroups: Record<string, string>;
}

/** Selects the names; throws ERR_CONFIG if a set is not installed. */
export function selectEmoji(options: SelectionOptions = {}): EmojiSelection {
  const { heldOut = 'fluent-emoji-flat', minArtists = 5, sets = artists.map(readIconSet) } = options;
  if (!artists.includes(heldOut)) {
    throw new MmError('ERR_ARGUMENT', `heldOut: "${heldOut}" is none of ${artists.join(', ')}`);
  }
  const drawnBy = new Map<string, Artist[]>();
  for (const set of sets) {
    for (const icon of set.drawings.keys()) {
      const list = drawnBy.get(icon);
      if (list) list.push(set.artist);
      else drawnBy.set(icon, [set.artist]);
    }
  }

  const find = emojibase();
  const { groups: groupNames, subgroups } = readPackageJson<EmojibaseGroups>('emojibase-data', 'meta/groups.json');
  const drawn = [...drawnBy]
    .filter(([icon, by]) => by.length >= minArtists && by.includes(heldOut) && !icon.startsWith('flag'))
    .sort(([a], [b]) => (a < b ? -1 : 1));
  const unmatched: string[] = [];
  const chosen = drawn.flatMap(([icon, by]) => {
    const found = find(icon);
    if (!found) unmatched.push(icon);
    if (!found || found.toned || found.entry.group === undefined || found.entry.group === componentGroup) return [];
    return [{ icon, by, entry: found.entry, groupId: found.entry.group }];
  });

  const groupIds = [...new Set(chosen.map(({ groupId }) => groupId))].sort((a, b) => a - b);
  const twins = findTwins(
    chosen.map(({ icon }) => icon),
    sets,
  );
  return {
    heldOut,
    minArtists,
    unmatched,
    groups: groupIds.map((id) => groupNames[id].split('-')),
    names: chosen.map(({ icon, by, entry, groupId }, index) => ({
      icon,
      words: icon.split('-'),
      hexcode: entry.hexcode,
      group: groupIds.indexOf(groupId),
      subgroup: subgroups[entry.subgroup!],
      keywords: entry.tags ?? [],
      artists: by,
      twins: twins[index],
      mirrors: mirrors(icon, groupNames[groupId], subgroups[entry.subgroup!]),
    })),
  };
}

/**
 * Looks an icon up in emojibase: iconify forms its names from the English labels, so almost all match there; the few
 * whose label has changed since (`hugging-face`) or has a sign in it (`keycap-asterisk`) match by code points.
 */
function emojibase(): (icon: string) => { entry: EmojibaseEntry; toned: boolean } | undefined {
  const entries = readPackageJson<EmojibaseEntry[]>('emojibase-data', 'en/data.json');
  const byLabel = new Map(entries.map((entry) => [slug(entry.label), entry]));
  const byHexcode = new Map<string, { entry: EmojibaseEntry; toned: boolean }>();
  for (const entry of entries) {
    byHexcode.set(plainHexcode(entry.hexcode), { entry, toned: false });
    for (const skin of entry.skins ?? []) byHexcode.set(plainHexcode(skin.hexcode), { entry, toned: true });
  }
  // The other two sets come without a list of code points.
  const codePoints = (['twemoji', 'noto', 'openmoji', 'fluent-emoji-flat'] as const).map(readCodePoints);
  return (icon) => {
    const entry = byLabel.get(slug(icon));
    if (entry) return { entry, toned: false };
    for (const table of codePoints) {
      const hexcode = table.get(icon);
      const found = hexcode === undefined ? undefined : byHexcode.get(hexcode);
      if (found) return found;
    }
    return undefined;
  };
}

function slug(label: string): string {
  return label
    .normalize('NFD')
    .toLowerCase()
    .replace(/[\u0300-\u036f’'“”!.():,&]/g, '')
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '');
}

/** noto-v1 draws one man for "man biking" and "person biking": to call either of them absent would be a false label. */
function findTwins(icons: readonly string[], sets: readonly IconSet[]): number[][] {
  const twins = icons.map(() => new Set<number>());
  for (const set of sets) {
    const byBody = new Map<string, number[]>();
    icons.forEach((icon, index) => {
      const body = set.drawings.get(icon)?.body;
      if (body === undefined) return;
      const same = byBody.get(body) ?? [];
      for (const other of same) {
        twins[index].add(other);
        twins[other].add(index);
      }
      byBody.set(body, [...same, index]);
    });
  }
  return twins.map((set) => [...set].sort((a, b) => a - b));
}

/** Signs, letters, clock faces and hands tell left from right even where the name does not say so. */
function mirrors(icon: string, group: string, subgroup: string): boolean {
  if (/(^|-)(left|right|leftwards|rightwards|clockwise|counterclockwise|anticlockwise)(-|$)/.test(icon)) return false;
  return group !== 'symbols' && !['time', 'hand-single-finger', 'place-map'].includes(subgroup);
}
