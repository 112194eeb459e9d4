import { loadTokenizer } from '../io/tokenizer/load.js';
import { loadModel } from '../models/load.js';
import type { VisionLanguageModel } from '../models/model.js';
import { MmError } from '../native/errors.js';
import type { Placement } from '../nn/parameter.js';
import { trainTeacherSchema } from './config.js';
import { imageShapeOf, loadEmojiTask, type EmojiTask, type TaskOptions } from './task.js';

/** A model of the emoji task with the task as it was trained for: vocabulary, image size, unseen artist. */
export async function loadTaskModel(
  folder: string,
  options: TaskOptions & Partial<Placement>,
): Promise<{ model: VisionLanguageModel; task: EmojiTask }> {
  const model = await loadModel(folder, { device: options.device, dtype: options.dtype });
  try {
    const about = model.config.raw['task'] as { name?: string; held_out?: string; min_artists?: number } | undefined;
    if (about?.name !== 'emoji')
      throw new MmError('ERR_ARGUMENT', `${folder} was not trained on the emoji task (config.json has no "task" of the name "emoji")`);
    const { data } = trainTeacherSchema.parse({ data: { heldOut: about.held_out, minArtists: about.min_artists } });
    const task = await loadEmojiTask(data, imageShapeOf(model.config), { tokenizer: await loadTokenizer(folder), ...options });
    return { model, task };
  } catch (error) {
    model.dispose();
    throw error;
  }
}
