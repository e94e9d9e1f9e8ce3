/**
 * The one error that users see. `code` is stable and listed in docs/errors.md; `errno` is what NBD clients and exit
 * codes are made of; the message says what was attempted and the state found, the hint what to do next.
 */

/** The errors dmkit reports, with Linux numbers and the C library's words (dmsetup prints these). */
export const ERRNO = {
  EPERM: [1, 'Operation not permitted'],
  ENOENT: [2, 'No such file or directory'],
  EINTR: [4, 'Interrupted system call'],
  EIO: [5, 'Input/output error'],
  ENXIO: [6, 'No such device or address'],
  EAGAIN: [11, 'Resource temporarily unavailable'],
  ENOMEM: [12, 'Cannot allocate memory'],
  EACCES: [13, 'Permission denied'],
  EBUSY: [16, 'Device or resource busy'],
  EEXIST: [17, 'File exists'],
  ENODEV: [19, 'No such device'],
  EINVAL: [22, 'Invalid argument'],
  ENOTBLK: [15, 'Block device required'],
  EILSEQ: [84, 'Invalid or incomplete multibyte or wide character'],
  ENOTTY: [25, 'Inappropriate ioctl for device'],
  EFBIG: [27, 'File too large'],
  ENOSPC: [28, 'No space left on device'],
  EROFS: [30, 'Read-only file system'],
  ENODATA: [61, 'No data available'],
  EOVERFLOW: [75, 'Value too large for defined data type'],
  EOPNOTSUPP: [95, 'Operation not supported'],
  ECONNREFUSED: [111, 'Connection refused'],
  ESHUTDOWN: [108, 'Cannot send after transport endpoint shutdown'],
  ETIMEDOUT: [110, 'Connection timed out'],
} as const satisfies Record<string, readonly [number, string]>;

export type Errno = keyof typeof ERRNO;

export const errnoNumber = (name: Errno) => ERRNO[name][0];
export const errnoText = (name: Errno) => ERRNO[name][1];

export interface ErrorDetail {
  hint?: string;
  cause?: unknown;
}

/** Which part of a `create` with a table failed, and the number that the device had. */
export interface FailedStep {
  call: 'load' | 'resume';
  major: number;
  minor: number;
}

export class DmError extends Error {
  override readonly name: string = 'DmError';
  readonly code: string;
  readonly errno: Errno;
  readonly hint: string | undefined;
  /** Of a call that consists of several. */
  step?: FailedStep;

  constructor(code: string, errno: Errno, message: string, detail: ErrorDetail = {}) {
    super(message, detail.cause === undefined ? undefined : { cause: detail.cause });
    this.code = code;
    this.errno = errno;
    this.hint = detail.hint;
  }
}

/** A table or one of its lines cannot be loaded. */
export class TableError extends DmError {
  override readonly name = 'TableError';
}

/** Bytes on a device are not what their format demands. Nothing was written. */
export class FormatError extends DmError {
  override readonly name = 'FormatError';
}

/** An I/O that a device refused or failed. */
export const ioError = (message: string, cause?: unknown) => new DmError('IO', 'EIO', message, { cause });

/** Turns what `node:fs` and `node:net` throw into a DmError that says what was attempted. Keeps a DmError as it is. */
export function fromSystem(error: unknown, attempted: string, hint?: string): DmError {
  if (error instanceof DmError) return error;
  const code = (error as NodeJS.ErrnoException)?.code ?? '';
  const errno = code in ERRNO ? (code as Errno) : 'EIO';
  const text = code in ERRNO ? errnoText(errno) : error instanceof Error ? error.message : String(error);
  return new DmError(errno === 'EIO' ? 'IO' : `SYSTEM_${errno}`, errno, `${attempted}: ${text}`, {
    hint,
    cause: error,
  });
}
