import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseModelConfig, type ModelConfig } from '../models/config.js';
import { loadModel, placementOf } from '../models/load.js';
import type { ModelInputs } from '../models/inputs.js';
import { VisionLanguageModel } from '../models/model.js';
import { withGradients } from '../nn/gradients.js';
import { crossEntropy } from '../ops/index.js';
import { Random } from '../tensor/random.js';
import { Tensor } from '../tensor/tensor.js';
import { loadMoments, openRun, saveCheckpoint, saveModelFolder } from './checkpoint.js';
import type { DataConfig, TeacherModelConfig, TrainTeacherConfig } from './config.js';
import { EmojiLoader, loaderWorkers } from './data/emoji/index.js';
import { evaluate, type Scores } from './evaluate.js';
import { train, type Objective } from './loop.js';
import { MetricsFile } from './metrics.js';
import { AdamW } from './optimizer.js';
import { answerTargets, padded } from './positions.js';
import { dataSeed, type RunOptions } from './run.js';
import { loadEmojiTask, type EmojiTask, type TaskOptions } from './task.js';

/** config.json of a HoVLE-shaped teacher for a task's vocabulary, in the layout of the released folders. */
export function teacherConfig(model: TeacherModelConfig, task: Pick<EmojiTask, 'tokenizer' | 'tokens'>, data: DataConfig): ModelConfig {
  const { tokenizer, tokens } = task;
  const stack = {
    hidden_size: model.hiddenSize,
    num_attention_heads: model.heads,
    num_key_value_heads: model.kvHeads,
    intermediate_size: model.mlpSize,
    max_position_embeddings: model.maxPositions,
    rope_theta: model.ropeTheta,
    rope_scaling: null,
    rms_norm_eps: 1e-5,
    hidden_act: 'silu',
  };
  return parseModelConfig({
    architectures: ['InternVLChatModel'],
    model_type: 'internvl_chat',
    force_image_size: model.imageSize,
    downsample_ratio: 0.5,
    dynamic_image_size: false,
    ps_version: 'v2',
    torch_dtype: 'float32',
    // What it was trained to do, and whose drawings it has not seen.
    task: { name: 'emoji', held_out: data.heldOut, min_artists: data.minArtists },
    embedding_config: {
      model_type: 'holistic_embedding',
      ...stack,
      num_hidden_layers: model.embeddingLayers,
      num_channels: 3,
      patch_size: model.patchSize,
      image_size: model.imageSize,
      llm_vocab_size: tokenizer.vocabSize,
      llm_hidden_size: model.hiddenSize,
      downsample_ratio: 0.5,
      img_context_token_id: tokens.imageContext,
      pixel_shuffle_loc: 'pre',
      use_pixel_shuffle_proj: true,
      special_token_maps: {},
    },
    llm_config: {
      architectures: ['InternLM2ForCausalLM'],
      model_type: 'internlm2',
      ...stack,
      num_hidden_layers: model.languageLayers,
      vocab_size: tokenizer.vocabSize,
      bos_token_id: tokens.bos,
      eos_token_id: tokens.eos,
      pad_token_id: 0,
      tie_word_embeddings: false,
    },
  });
}

export interface AnswerInputs {
  inputs: ModelInputs;
  /** i32 (M) flat positions that predict an answer's token, and (M) the tokens, -100 where none counts */
  positions: Tensor;
  labels: Tensor;
}

/** Cross entropy of the answers; logits are computed at the positions that predict one. */
export function answerObjective(model: VisionLanguageModel, { labelSmoothing }: { labelSmoothing: number }): Objective<AnswerInputs> {
  const { device } = model.placement;
  return {
    inputs: (rows) => {
      const { size, length, inputIds, pixelValues, imageFlags } = rows;
      const { positions, targets } = answerTargets(rows);
      const ints = (data: Int32Array, fill: number): Tensor => {
        const all = padded(data, size, fill);
        return Tensor.from(all, [all.length], { device });
      };
      return {
        inputs: model.prepare({ size, length, inputIds, pixelValues, imageFlags }),
        positions: ints(positions, 0),
        labels: ints(targets, -100),
      };
    },
    gradients: ({ inputs, positions, labels }) => {
      const { loss, gradients } = withGradients(model.parameters(), () => {
        const logits = model.forward(inputs, { logits: positions });
        return { loss: crossEntropy({ logits, labels }, { labelSmoothing }).loss };
      });
      return { loss, gradients };
    },
    weight: ({ answerMask }) => answerMask.reduce((sum, bit) => sum + bit, 0),
  };
}

export interface TeacherResult {
  /** the finished model's folder, bf16 */
  folder: string;
  /** of that folder's weights on the unseen artist */
  scores: Scores;
}

/**
 * Trains a teacher. In `out`: metrics.jsonl, last/ (checkpoint), best/ (best by exact names on the validation drawings)
 * and at the end model/, the best as bf16 with its vocabulary, its scores on the unseen artist and its training log.
 * @throws MmError ERR_ABORTED when stopped, with a checkpoint in last/
 */
export async function trainTeacher(config: TrainTeacherConfig, run: RunOptions, taskOptions: TaskOptions = {}): Promise<TeacherResult> {
  const { out, signal, progress } = run;
  const placement = placementOf({ device: run.device, dtype: config.dtype });
  const state = await openRun(out, 'teacher', run.resume ?? false, config);
  const task = await loadEmojiTask(config.data, config.model, { progress, signal, ...taskOptions });
  const [last, best, finished] = [join(out, 'last'), join(out, 'best'), join(out, 'model')];

  using metrics = new MetricsFile(join(out, 'metrics.jsonl'), state?.metricsBytes ?? 0);
  using model = state
    ? await loadModel(last, { ...placement, trainable: () => true })
    : VisionLanguageModel.initialised(teacherConfig(config.model, task, config.data), placement, new Random(config.seed));
  const parameters = model.setTrainable(() => true);
  using optimizer = new AdamW(parameters, config.optim);
  if (state) await loadMoments(last, optimizer, state.step, placement.device);
  await using source = new EmojiLoader(task.batches({ batchSize: config.optim.batchSize, seed: dataSeed(config.seed, 0) }), {
    firstStep: state?.step ?? 0,
    workers: loaderWorkers(placement.device),
  });
  await train({
    stage: 'teacher',
    optimisation: config.optim,
    parameters,
    optimizer,
    firstStep: state?.step ?? 0,
    best: state?.best ?? null,
    source,
    objective: answerObjective(model, config.loss),
    metrics,
    progress,
    signal,
    evaluation: {
      every: config.evaluation.every,
      run: () => validate(model, task, config.evaluation.batchSize),
      saveBest: () => saveModelFolder(best, model, task.tokenizer),
    },
    checkpoint: {
      every: config.checkpoints.every,
      save: (step, found) =>
        saveCheckpoint(last, model, task.tokenizer, optimizer, {
          kind: 'teacher',
          stage: 'teacher',
          step,
          best: found,
          metricsBytes: metrics.flush(),
          config,
        }),
    },
  });

  using chosen = await loadModel(best, placement);
  await saveModelFolder(finished, chosen, task.tokenizer, { dtype: 'bf16' });
  using rounded = await loadModel(finished, placement);
  const { answers: _, ...scores } = await evaluate(rounded, task, task.test, { progress, title: `unseen artist: ${config.data.heldOut}`, signal });
  const log = await readFile(join(out, 'metrics.jsonl'), 'utf8');
  await saveModelFolder(finished, chosen, task.tokenizer, {
    dtype: 'bf16',
    files: [
      ['training-log.jsonl', log],
      ['training.json', `${JSON.stringify({ config, parameters: parameters.reduce((sum, p) => sum + p.size, 0), scores }, null, 1)}\n`],
    ],
  });
  return { folder: finished, scores };
}

/** Accuracy on the validation drawings; the score is that of whole names. Empty when no drawings were kept back. */
export async function validate(model: VisionLanguageModel, task: EmojiTask, batchSize: number): Promise<{ score: number } & Record<string, number>> {
  if (task.validation.name.length === 0) return { score: 0 };
  const { name } = await evaluate(model, task, task.validation, { kinds: ['name'], batchSize });
  return { score: name!.accuracy, exactNames: name!.accuracy };
}
