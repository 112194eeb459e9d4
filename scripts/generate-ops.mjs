// Writes lib/ops/generated.ts from the schemas that the built addon reports (csrc/ops). With --check: fails when the
// committed file differs. Works from the raw addon, so that it needs no TypeScript build.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const require = createRequire(import.meta.url);
const schemas = require(join(root, 'build', 'Release', 'mmmamba.node')).schemas();
const target = join(root, 'lib', 'ops', 'generated.ts');

const dtypes = ['f32', 'bf16', 'f16', 'i32', 'u8'];
const setText = (set) => dtypes.filter((_, i) => (set >> i) & 1).join(', ');
const pascal = (name) => name[0].toUpperCase() + name.slice(1);
const isBackward = (name) => schemas.some((s) => s.backward === name);
const optionType = (a) => (a.kind === 'boolean' ? 'boolean' : a.kind === 'enum' ? a.choices.split('|').map((c) => `'${c}'`).join(' | ') : 'number');
const initialText = (a) => (a.kind === 'boolean' ? String(a.initial === 1) : a.kind === 'enum' ? `'${a.choices.split('|')[a.initial]}'` : String(a.initial));

function wrapper(s) {
  const name = pascal(s.name);
  const lines = [];
  if (s.inputs.length) {
    lines.push(`export interface ${name}Inputs extends Operands {`);
    for (const i of s.inputs) {
      lines.push(`  /** ${i.doc}; ${setText(i.dtypes)}${i.mutates ? '; written in place' : ''} */`);
      lines.push(`  ${i.name}${i.optional ? '?' : ''}: ${i.list ? 'readonly Tensor[]' : 'Tensor'}${i.optional ? ' | null' : ''};`);
    }
    lines.push('}');
  }
  if (s.attrs.length) {
    lines.push(`export interface ${name}Options extends Attrs {`);
    for (const a of s.attrs) {
      lines.push(`  /** ${a.doc}${a.required ? '' : `; default ${initialText(a)}`} */`);
      lines.push(`  ${a.name}${a.required ? '' : '?'}: ${optionType(a)};`);
    }
    lines.push('}');
  }
  if (s.outputs.length > 1) {
    lines.push(`export interface ${name}Outputs {`);
    for (const o of s.outputs) {
      lines.push(`  /** ${o.doc} */`);
      lines.push(`  ${o.name}: Tensor;`);
    }
    lines.push('}');
  }
  const required = s.attrs.some((a) => a.required);
  const parameters = [];
  if (s.inputs.length) parameters.push(`inputs: ${name}Inputs`);
  if (s.attrs.length) parameters.push(`options${required ? '' : '?'}: ${name}Options`);
  if (!s.inputs.length) parameters.push('device?: string');
  const result = s.outputs.length === 0 ? 'void' : s.outputs.length === 1 ? 'Tensor' : `${name}Outputs`;
  const call = `apply('${s.name}', ${s.inputs.length ? 'inputs' : '{}'}, ${s.attrs.length ? 'options' : 'undefined'}${s.inputs.length ? '' : ', device'})`;
  lines.push('/**', ` * ${s.doc}`);
  if (s.outputs.length === 1) lines.push(` * @returns ${s.outputs[0].name}: ${s.outputs[0].doc}`);
  lines.push(' * @throws MmError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_ARGUMENT when an operand or option does not fit', ' */');
  lines.push(`export function ${s.name}(${parameters.join(', ')}): ${result} {`);
  if (s.outputs.length === 0) lines.push(`  ${call};`);
  else if (s.outputs.length === 1) lines.push(`  return ${call}['${s.outputs[0].name}']!;`);
  else lines.push(`  return ${call} as unknown as ${name}Outputs;`);
  lines.push('}', '');
  return lines.join('\n');
}

const text = `// Generated from the schemas in csrc/ops by scripts/generate-ops.mjs. Do not edit: change the schema and run \`npm run generate\`.
import type { Attrs } from '../native/binding.js';
import type { Operands } from '../tensor/run.js';
import type { Tensor } from '../tensor/tensor.js';
import { apply } from './apply.js';

${schemas.filter((s) => !isBackward(s.name)).map(wrapper).join('\n')}`;

if (process.argv.includes('--check')) {
  if (readFileSync(target, 'utf8') !== text) {
    console.error('lib/ops/generated.ts is not what csrc/ops declares: run `npm run generate` and commit the result');
    process.exit(1);
  }
} else {
  writeFileSync(target, text);
}
