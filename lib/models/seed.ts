import { noGrad } from '../autograd/tape.js';
import { MmError } from '../native/errors.js';
import type { Parameter } from '../nn/parameter.js';
import { concat, slice } from '../ops/index.js';
import { Random } from '../tensor/random.js';
import { scope } from '../tensor/scope.js';
import { defaultMixer, studentConfig, type MixerConfig, type ModelConfig } from './config.js';
import { keep } from './context.js';
import type { Attention } from './hovle/attention.js';
import type { MambaMixer, MixerInitialisation } from './mmmamba/mixer.js';
import { VisionLanguageModel } from './model.js';

export interface SeedOptions {
  /** of the random parts: dt_bias and the gate. Layer i draws from stream i, whatever the other layers are */
  seed: number;
  /** layers that stay softmax attention, numbered over both stacks; default none */
  attentionLayers?: readonly number[];
  /** take q, k, v projections from the teacher; default true */
  inheritQkv?: boolean;
  /** set the rest so that the mixer first acts like attention; default true */
  mimicInit?: boolean;
  /** switches of the mixers; default those of the paper, in the separate layout */
  mixer?: Partial<MixerConfig>;
}

interface Derivation {
  /** the parameter for a name, or undefined to leave it without value */
  source: (name: string) => Parameter | undefined;
  /** default none */
  trainable?: (name: string) => boolean;
  initialisation?: MixerInitialisation;
}

/** A model whose parameters use the memory of others. */
function derive(config: ModelConfig, base: VisionLanguageModel, { source, trainable, initialisation }: Derivation): VisionLanguageModel {
  const model = new VisionLanguageModel(config, base.placement, initialisation);
  for (const parameter of model.parameters()) {
    const from = source(parameter.name);
    parameter.trainable = trainable?.(parameter.name) ?? false; // first, so that it takes the master
    if (from) parameter.share(from);
  }
  for (const [name, raw] of base.unused) model.unused.set(name, raw);
  return model;
}

/** Copies the teacher's query, key and value projections, which are slices of its wqkv. */
function inherit(mixer: MambaMixer, teacher: Attention): void {
  const { heads, kvHeads, headDim } = mixer.config;
  const all = teacher.wqkv.weight.value;
  const [v, k, q] = mixer.projections as [Parameter, Parameter, Parameter];
  const end = (heads + kvHeads) * headDim;
  noGrad(() =>
    scope(() => {
      q.set(slice(all, 0, 0, heads * headDim));
      k.set(slice(all, 0, heads * headDim, end));
      v.set(slice(all, 0, end, end + kvHeads * headDim));
    }),
  );
}

/**
 * A student for a teacher of softmax attention layers: mixers seeded from the attention they replace, everything else
 * shared with the teacher's memory (a shared parameter gets its own copy when it becomes trainable). Random parts differ
 * from the reference's, which draws them from PyTorch's generator.
 * @throws MmError ERR_ARGUMENT for a teacher with mixers of its own or layers that do not exist
 */
export function seedStudent(teacher: VisionLanguageModel, options: SeedOptions): VisionLanguageModel {
  const { seed, attentionLayers = [], inheritQkv = true, mimicInit = true } = options;
  if (teacher.blockTypes.includes('mamba2'))
    throw new MmError('ERR_ARGUMENT', 'the teacher must have softmax attention in every layer; it has Mamba-2 layers');
  const mixer: MixerConfig = { ...defaultMixer, ...options.mixer };
  const config = studentConfig(teacher.config, attentionLayers, { ...mixer, layout: 'separate' });
  const known = teacher.namedParameters();
  const source = (name: string): Parameter | undefined => known.get(name) ?? known.get(name.replace(/\.o_proj\./, '.wo.'));
  const student = derive(config, teacher, { source, initialisation: { mimic: mimicInit } });
  student.blocks.forEach((block, i) => {
    if (block.mixer.type !== 'mamba2') return;
    const random = new Random(seed, i);
    for (const parameter of block.mixer.parameters()) if (!parameter.loaded) parameter.initialise(random);
    if (inheritQkv) inherit(block.mixer, teacher.blocks[i]!.mixer as Attention);
  });
  if (mixer.layout === 'separate') return student;
  const fused = convertLayout(student, 'fused');
  student.dispose();
  return fused;
}

/**
 * The student with other layers as softmax attention: those named take the teacher's attention, all others stay as they
 * are. Memory is shared with both, but for what is trainable.
 * @param trainable parameters to make trainable, which keep their full precision under low-precision compute; default those of
 *   the student that are
 * @throws MmError ERR_ARGUMENT for a layer that does not exist, or one that is neither named nor a mixer of the student
 */
export function withAttentionLayers(
  student: VisionLanguageModel,
  teacher: VisionLanguageModel,
  attentionLayers: readonly number[],
  trainable?: (name: string) => boolean,
): VisionLanguageModel {
  const config = studentConfig(student.config, attentionLayers, student.config.mixer);
  const lost = student.blockTypes.flatMap((type, i) => (type === 'mha' && !attentionLayers.includes(i) ? [i] : []));
  if (lost.length > 0)
    throw new MmError('ERR_ARGUMENT', `layer ${lost.join(', ')} of the student is softmax attention: there is no mixer to use instead`);
  const own = student.namedParameters();
  const attention = teacher.namedParameters();
  return derive(config, student, {
    source: (name) => own.get(name) ?? attention.get(name),
    trainable: trainable ?? ((name) => own.get(name)?.trainable ?? false),
  });
}

const fusedNames = ['v_proj', 'k_proj', 'q_proj', 'g_proj', 'in_proj'];

/**
 * The student with its mixers' tensors in the other layout, value for value: 'separate' is what training works on,
 * 'fused' (one product a mixer) what is released and decodes fastest. Memory of all other parameters is shared.
 */
export function convertLayout(student: VisionLanguageModel, layout: MixerConfig['layout']): VisionLanguageModel {
  const attentionLayers = student.blockTypes.flatMap((type, i) => (type === 'mha' ? [i] : []));
  const config = studentConfig(student.config, attentionLayers, { ...student.config.mixer, layout });
  const own = student.namedParameters();
  const [here, there] = layout === 'fused' ? ['.g_norm_swish_gate.', '.g_norm.'] : ['.g_norm.', '.g_norm_swish_gate.'];
  const renamed = (name: string): string => name.replace(here!, there!);
  const model = derive(config, student, { source: (name) => own.get(name) ?? own.get(renamed(name)) });
  const missing = model.parameters().filter((p) => !p.loaded);
  noGrad(() =>
    scope(() => {
      const offsets = new Map<string, number>();
      for (const target of missing) {
        const base = target.name.replace(/\.[^.]+\.weight$/, '');
        if (layout === 'fused') {
          const parts = fusedNames.flatMap((part) => own.get(`${base}.${part}.weight`) ?? []);
          target.adopt(keep(concat({ x: parts.map((p) => p.master) }, { axis: 0 })));
        } else {
          // The mixer declares v, k, q, g, dt in the order of the fused rows.
          const from = offsets.get(base) ?? 0;
          offsets.set(base, from + target.shape[0]!);
          target.set(slice(own.get(`${base}.wvkqgdt.weight`)!.master, 0, from, from + target.shape[0]!));
        }
      }
    }),
  );
  return model;
}
