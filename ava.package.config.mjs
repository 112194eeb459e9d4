// The package as users get it: packed, installed elsewhere, run there. Needs `npm run prebuild` before.
export default {
  files: ['dist/test/package/*.test.js'],
  workerThreads: false,
  concurrency: 1,
  timeout: '15m',
};
