/** The rows of `--shapes large` that the README shows and the chart draws: what people come for. */
export interface Headline {
  /** op and name of a row of bench/results/cuda-kernels-large.json */
  op: string;
  name: string;
  /** what the row is, for people */
  label: string;
  /** how a rate is told beside the time */
  rate?: 'TFLOP/s' | 'GB/s';
}

const attention = (L: number, op: string, label: string): Headline =>
  ({ op, name: `B1 Lq${L} Lk${L} H16 Hk8 D128 causal`, label: `${label}, L=${L}`, rate: 'TFLOP/s' });
const both = (op: string, name: string, label: string): Headline[] => [
  { op, name, label: `${label}, forward` },
  { op: `${op} + ${op}Backward`, name, label: `${label}, forward + backward` },
];
const long = 'B1 T103424 H16 K128 V128';

export const headlines: Headline[] = [
  ...[2048, 8192, 32768, 103424].flatMap((L) => [attention(L, 'attention', 'attention'), attention(L, 'attentionBackward', 'attention backward')]),
  ...[8192, 32768, 103424].map((keys): Headline => ({ op: 'attentionKvCache', name: `one query over ${keys} keys, H16 Hk8 D128`, label: `attention, one query over ${keys} keys`, rate: 'GB/s' })),
  { op: 'ssd', name: 'L8192 H16 P128 N128 G16', label: 'ssd, L=8192, H=16, P=N=128, G=16, forward' },
  ...both('ssd', 'L103424 H16 P128 N128 G16', 'ssd, L=103424, H=16, P=N=128, G=16'),
  ...both('ssd', 'L103424 H16 P128 N128 G8', 'ssd, the same with G=8'),
  ...both('ssd', 'L103424 H80 P64 N128 G1', 'ssd, L=103424, H=80, P=64, N=128, G=1'),
  ...both('linearAttention', long, 'linearAttention, L=103424, H=16, K=V=128'),
  ...both('simpleGla', long, 'simpleGla, the same'),
  ...both('gla', long, 'gla, the same'),
  ...[['B1 D4096 N16 L8192 gated', 'B=1, L=8192'], ['B8 D4096 N16 L32768 gated', 'B=8, L=32768']].flatMap(([name, shape]): Headline[] => [
    { op: 'selectiveScan', name: name!, label: `selectiveScan, ${shape}, D=4096, N=16` },
    { op: 'selectiveScanBackward', name: name!, label: 'its backward' },
  ]),
  ...[1, 64].map((B): Headline => ({ op: 'selectiveStateUpdate', name: `B${B} H16 P128 N128 G16`, label: `selectiveStateUpdate, B=${B}, H=16, P=N=128` })),
  ...[2, 4].flatMap((W): Headline[] => [
    { op: 'causalConv1d', name: `channel-last B1 D4096 L103424 W${W} silu`, label: `causalConv1d + silu, channel-last, W=${W}`, rate: 'GB/s' },
    { op: 'causalConv1dBackward', name: `channel-last B1 D4096 L103424 W${W} silu`, label: 'its backward', rate: 'GB/s' },
  ]),
  { op: 'gatedRmsNorm', name: '103424 x 16 heads of 128', label: 'gatedRmsNorm, 103424 x 16 heads of 128', rate: 'GB/s' },
  { op: 'gatedRmsNormBackward', name: '103424 x 16 heads of 128', label: 'its backward', rate: 'GB/s' },
  { op: 'linear', name: '1x2048x8192', label: 'linear, one token, 8192 x 2048', rate: 'GB/s' },
  { op: 'linear', name: '1x2048x92553', label: 'linear, one token, 92553 x 2048', rate: 'GB/s' },
];
