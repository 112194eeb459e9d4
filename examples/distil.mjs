// Seeds mmMamba-linear from a teacher and distils it in three stages: node examples/distil.mjs [steps] [folder]
import { distill, distillSchema } from 'mmmamba/train';

const [steps = '100', out = 'runs/example'] = process.argv.slice(2);
const short = { steps: Number(steps), batchSize: 64 };
const config = distillSchema().parse({
  preset: 'emoji',
  student: 'linear',
  dtype: 'bf16',
  stages: { stage1: short, stage2: short, stage3: { ...short, positions: 'answer' } },
});
const progress = { start: (title) => console.log(title), update() {}, message: console.log, stop() {} };
const { folder, scores } = await distill(config, 'models/emoji-teacher', { out, device: 'cpu', progress });
console.log(folder, 'exact names on the unseen artist:', scores.name.accuracy);
