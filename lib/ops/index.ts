export * from './generated.js';
export * from './views.js';
