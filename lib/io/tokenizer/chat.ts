import { Template } from '@huggingface/jinja';
import { MmError } from '../../native/errors.js';
import { reasonOf } from '../fail.js';
import { IMAGE_CONTEXT, IMAGE_END, IMAGE_START, type Tokenizer } from './tokenizer.js';

/** One turn. `<image>` in the content marks where an image belongs. */
export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

/**
 * `internlm2-chat` as InternVL's models were trained on it. It differs from InternLM2's own template: no line break after
 * `<|im_end|>`, and a system turn always. `default_system` stands in where the messages bring none.
 */
export const INTERNLM2_CHAT_TEMPLATE =
  `{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n' + default_system + '<|im_end|>' }}{% endif %}` +
  `{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{% endfor %}` +
  `{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}`;

/** The system message that InternVL's models were trained with. */
export const INTERNVL_SYSTEM_MESSAGE =
  '你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。';

const IMAGE_PLACEHOLDER = '<image>';

export interface ChatOptions {
  /** Jinja. Default `INTERNLM2_CHAT_TEMPLATE`. */
  readonly template?: string;
  /** Where the messages bring no system turn. Default `INTERNVL_SYSTEM_MESSAGE`. */
  readonly systemMessage?: string;
  /** Ends with the opening of the assistant's turn, ready for generation. Default true. */
  readonly addGenerationPrompt?: boolean;
  /** What a template means by `bos_token` and `eos_token`. Default `<s>` and `</s>`. */
  readonly bosToken?: string;
  readonly eosToken?: string;
}

/** The messages as one text. @throws MmError ERR_ARGUMENT where there are none or the template fails */
export function renderChat(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
  const { template = INTERNLM2_CHAT_TEMPLATE, systemMessage = INTERNVL_SYSTEM_MESSAGE, addGenerationPrompt = true } = options;
  if (messages.length === 0) throw new MmError('ERR_ARGUMENT', 'a chat needs at least one message');
  try {
    return new Template(template).render({
      messages,
      default_system: systemMessage,
      add_generation_prompt: addGenerationPrompt,
      bos_token: options.bosToken ?? '<s>',
      eos_token: options.eosToken ?? '</s>',
    });
  } catch (cause) {
    throw new MmError('ERR_ARGUMENT', `the chat template cannot be rendered: ${reasonOf(cause)}`, { cause });
  }
}

/**
 * Puts an image's tokens in place of each `<image>`: `<img>`, one `<IMG_CONTEXT>` for each token, `</img>`.
 * @param tokensPerImage tokens of each image, in the order of the placeholders: tiles x tokens per tile
 * @throws MmError ERR_ARGUMENT where there are not as many placeholders as images
 */
export function expandImages(text: string, tokensPerImage: readonly number[]): string {
  const parts = text.split(IMAGE_PLACEHOLDER);
  const holes = parts.length - 1;
  if (holes !== tokensPerImage.length) {
    throw new MmError('ERR_ARGUMENT', `the text has ${holes} ${IMAGE_PLACEHOLDER} for ${tokensPerImage.length} images; one for each is needed`);
  }
  return parts.reduce((left, right, i) => left + IMAGE_START + IMAGE_CONTEXT.repeat(tokensPerImage[i - 1]) + IMAGE_END + right);
}

/** Images without a placeholder go before the first user turn, each on a line of its own, as InternVL has it. */
function withPlaceholders(messages: readonly ChatMessage[], images: number): readonly ChatMessage[] {
  if (images === 0 || messages.some(({ content }) => content.includes(IMAGE_PLACEHOLDER))) return messages;
  const first = messages.findIndex(({ role }) => role === 'user');
  if (first < 0) throw new MmError('ERR_ARGUMENT', `a chat with ${images} images needs a user message`);
  return messages.map((message, i) => (i === first ? { ...message, content: `${IMAGE_PLACEHOLDER}\n`.repeat(images) + message.content } : message));
}

/** Content with a special token in it could end a turn, or claim image rows that do not exist. */
function refuseSpecialTokens(messages: readonly ChatMessage[], tokenizer: Tokenizer): void {
  for (const [i, { content }] of messages.entries()) {
    for (const token of tokenizer.specialTokens.keys()) {
      if (token !== IMAGE_PLACEHOLDER && content.includes(token)) {
        throw new MmError('ERR_ARGUMENT', `message ${i} contains the special token ${token}, which only the chat template may set`);
      }
    }
  }
}

/**
 * A chat as token ids, images included.
 * @param options `tokensPerImage` as in `expandImages`; without a `<image>` in any message the images go first
 * @throws MmError ERR_ARGUMENT
 */
export function encodeChat(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  options: ChatOptions & { readonly tokensPerImage?: readonly number[] } = {},
): number[] {
  const { tokensPerImage = [] } = options;
  refuseSpecialTokens(messages, tokenizer);
  const text = expandImages(renderChat(withPlaceholders(messages, tokensPerImage.length), options), tokensPerImage);
  const ids = tokenizer.encode(text, { addSpecialTokens: true });
  // Some templates write the first token themselves; it must not come twice.
  const twice = tokenizer.bosId !== undefined && ids[0] === tokenizer.bosId && ids[1] === tokenizer.bosId;
  return twice ? ids.slice(1) : ids;
}

/** The ids that end an answer: end of sequence, and the chat template's own marks where the vocabulary has them. */
export function stopIds(tokenizer: Tokenizer): number[] {
  const ids = [tokenizer.eosId, tokenizer.tokenId('<|im_end|>'), tokenizer.tokenId('<|im_start|>')];
  return [...new Set(ids.filter((id) => id !== undefined))];
}
