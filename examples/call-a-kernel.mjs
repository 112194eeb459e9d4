// Calls the chunked SSD kernel of Mamba-2, forward and backward: node examples/call-a-kernel.mjs
import { memoryStats, Random, Scope, ssd, Tape, Tensor } from 'mmmamba';

const [B, L, H, P, N] = [1, 2048, 16, 128, 128];
const random = new Random(1);
const scope = new Scope(); // owns everything made inside run(); in TypeScript: using scope = new Scope()

const loss = scope.run(() => {
  const normal = (...shape) => Tensor.from(random.fill(shape.reduce((a, b) => a * b), (r) => r.normal()), shape);
  const x = normal(B, L, H, P);
  x.requiresGrad = true;
  const tape = new Tape();
  const { y, finalStates } = tape.record(() =>
    ssd({ x, dt: normal(B, L, H), A: Tensor.full([H], -1), B: normal(B, L, H, N), C: normal(B, L, H, N) }, { dtSoftplus: true }),
  );
  console.log('y', y.shape, 'final states', finalStates.shape); // shapes are known at once, the numbers later
  const [dX] = tape.backward(y, [x], y); // gradient of |y|^2 / 2
  return { y, dX };
});

console.time('ssd forward and backward');
console.log('first outputs', (await loss.y.data()).slice(0, 4));
console.log('first gradients', (await loss.dX.data()).slice(0, 4));
console.timeEnd('ssd forward and backward');
console.log('memory', memoryStats().devices.cpu);
scope.dispose();
