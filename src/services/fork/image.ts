/** Whether the bytes of an image are the disk's own. */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { DmError } from '../../errors.ts';
import { COW_STORE, recognise, SIGNATURE_BYTES, type Signature } from '../../formats/signatures.ts';

/** Undefined for a raw image, and for what is no regular file (a block device holds what it shows). */
export async function imageFormat(path: string): Promise<Signature | undefined> {
  // A fifo that nobody writes to would be waited for.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    if (!(await file.stat()).isFile()) return undefined;
    const start = new Uint8Array(SIGNATURE_BYTES);
    const { bytesRead } = await file.read(start, 0, start.length, 0);
    const found = recognise(start.subarray(0, bytesRead));
    return found?.kind === 'image' || found?.name === COW_STORE ? found : undefined;
  } finally {
    await file.close();
  }
}

/** IMAGE_FORMAT, with the command that converts the image or serves it as a disk. */
export function notRaw(path: string, { name, tool, kind }: Signature): DmError {
  const word = shellWord(path);
  const raw = shellWord(`${path.replace(/\.[^./]*$/, '')}.raw`);
  const hint =
    kind === 'store'
      ? 'fork the image that it belongs to; look at it: dmkit inspect'
      : tool?.startsWith('un') || tool === 'gunzip' || tool === 'bunzip2'
        ? `unpack it first: ${tool} --keep ${word}`
        : `convert it: qemu-img convert -O raw ${word} ${raw}\n` +
          `or serve it: qemu-nbd --format=${tool} --persistent --socket=/tmp/image.sock ${word} & dmkit fork 'nbd+unix:///?socket=/tmp/image.sock' NAME`;
  return new DmError('IMAGE_FORMAT', 'EINVAL', `Cannot fork ${path}: it is a ${name} file, not a raw image`, {
    hint: `${hint}\nor take its bytes as they are: --raw`,
  });
}

/** As a POSIX shell needs it. */
const shellWord = (text: string) => (/^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
