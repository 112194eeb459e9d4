/** What this library uses of node-gyp-build, which comes without types: how names of prebuilt binaries are read and ordered. */
declare module 'node-gyp-build' {
  interface Tags {
    file: string;
  }
  const nodeGypBuild: {
    parseTags(file: string): Tags;
    matchTags(runtime: string, abi: string): (tags: Tags) => boolean;
    compareTags(runtime: string): (a: Tags, b: Tags) => number;
  };
  export default nodeGypBuild;
}
