import cliProgress from 'cli-progress';

/** What a progress display shows beside the bar, in this order. */
export type Fields = Readonly<Record<string, number | string>>;

/** Shows how far a long job is. One job at a time: `start` ends the one before. */
export interface Progress {
  /** @param total units of the job; @param done units done before, by a run that is resumed */
  start(title: string, total: number, done?: number): void;
  update(done: number, fields?: Fields): void;
  /** A line of its own, above the bar. */
  message(text: string): void;
  stop(): void;
}

export interface ProgressOptions {
  /** default stderr, so that stdout holds results only */
  readonly stream?: NodeJS.WriteStream;
  /** where the stream is no terminal: ms between two lines; default 10,000 */
  readonly lineEvery?: number;
}

/** A bar on a terminal, plain lines now and then elsewhere (log files, CI). */
export function createProgress({ stream = process.stderr, lineEvery = 10_000 }: ProgressOptions = {}): Progress {
  return stream.isTTY ? new BarProgress(stream) : new LineProgress(stream, lineEvery);
}

/** Shows nothing: for the library's users and tests. */
export const silentProgress: Progress = { start() {}, update() {}, message() {}, stop() {} };

/** 7 → '7', 0.012345 → '0.0123', 1.2e-7 → '1.2e-7'; three significant digits. */
export function short(value: number | string): string {
  if (typeof value === 'string' || Number.isInteger(value) || !Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** 75 → '1:15', 3675 → '1:01:15' */
export function clock(seconds: number): string {
  if (!Number.isFinite(seconds)) return '-:--';
  const s = Math.round(seconds);
  const two = (n: number): string => String(n).padStart(2, '0');
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

const listed = (fields: Fields): string =>
  Object.entries(fields)
    .map(([name, value]) => `${name} ${short(value)}`)
    .join('  ');

/** Speed and remaining time from everything since the start: steady, unlike a rate of the last few units. */
class Pace {
  private readonly since = performance.now();
  constructor(
    private readonly total: number,
    private readonly first: number,
  ) {}
  seconds(): number {
    return (performance.now() - this.since) / 1000;
  }
  rate(done: number): number {
    return (done - this.first) / Math.max(this.seconds(), 1e-9);
  }
  text(done: number): string {
    const rate = this.rate(done);
    return `${short(rate)}/s  ${clock(this.seconds())} so far  ${clock(rate > 0 ? (this.total - done) / rate : Infinity)} left`;
  }
}

class BarProgress implements Progress {
  private bar: cliProgress.SingleBar | undefined;
  private pace: Pace | undefined;

  constructor(private readonly stream: NodeJS.WriteStream) {}

  start(title: string, total: number, done = 0): void {
    this.stop();
    this.pace = new Pace(total, done);
    this.bar = new cliProgress.SingleBar({
      stream: this.stream,
      format: `${title.padEnd(16)} {bar} {value}/{total}  {pace}  {fields}`,
      barCompleteChar: '█',
      barIncompleteChar: '░',
      barsize: 24,
      fps: 8,
      // Ctrl-C belongs to the command: it finishes its step and writes a checkpoint.
      gracefulExit: false,
      hideCursor: true,
      linewrap: null,
    });
    this.bar.start(total, done, { fields: '', pace: '' });
  }

  update(done: number, fields: Fields = {}): void {
    this.bar?.update(done, { fields: listed(fields), pace: this.pace!.text(done) });
  }

  message(text: string): void {
    if (this.bar) this.stream.write('\r\x1b[K');
    this.stream.write(`${text}\n`);
  }

  stop(): void {
    this.bar?.stop();
    this.bar = undefined;
  }
}

class LineProgress implements Progress {
  private job: { title: string; total: number; pace: Pace } | undefined;
  private last = { at: 0, done: 0, fields: {} as Fields };
  private written = -1;

  constructor(
    private readonly stream: NodeJS.WriteStream,
    private readonly every: number,
  ) {}

  start(title: string, total: number, done = 0): void {
    this.stop();
    this.job = { title, total, pace: new Pace(total, done) };
    this.last = { at: performance.now(), done, fields: {} };
    this.written = done;
  }

  update(done: number, fields: Fields = {}): void {
    if (!this.job) return;
    const now = performance.now();
    const due = now - this.last.at >= this.every;
    this.last = { at: due ? now : this.last.at, done, fields };
    if (due) this.line();
  }

  message(text: string): void {
    this.stream.write(`${text}\n`);
  }

  stop(): void {
    if (this.job && this.written !== this.last.done) this.line();
    this.job = undefined;
  }

  private line(): void {
    const { title, total, pace } = this.job!;
    const { done, fields } = this.last;
    this.written = done;
    this.stream.write(`${title}: ${done}/${total}  ${pace.text(done)}  ${listed(fields)}\n`);
  }
}
