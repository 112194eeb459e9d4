/** The package ships no types. Only what is used here; `processor` is the WebAssembly class, which the wrapper hides. */
declare module '@agnai/sentencepiece-js' {
  interface WasmStatus {
    ToString(): string;
    delete(): void;
  }
  export class SentencePieceProcessor {
    readonly processor: { status(): WasmStatus };
    /** Ignores a model that does not parse: ask `processor.status()`. */
    load(path: string): Promise<void>;
    encodeIds(text: string): number[];
    decodeIds(ids: number[]): string;
  }
}
