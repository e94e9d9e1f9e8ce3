/** Errors as the control socket carries them: a DmError goes in and the same DmError comes out. */
import { DmError, ERRNO, type Errno, type FailedStep, FormatError, TableError } from '../../errors.ts';

export interface WireError {
  /** Stable, listed in docs/errors.md. */
  code: string;
  errno: Errno;
  message: string;
  hint?: string;
  step?: FailedStep;
  class: 'DmError' | 'TableError' | 'FormatError';
}

/** What is no DmError is a fault of ours: the client learns its message, the log its stack. */
export function toWire(error: unknown): WireError {
  if (!(error instanceof DmError)) {
    const message = error instanceof Error ? error.message : String(error);
    return toWire(
      new DmError('INTERNAL', 'EIO', `The daemon failed: ${message}`, {
        hint: 'this is a fault in dmkit: please report it with dmkit.log of the state directory',
      }),
    );
  }
  const kind = error instanceof TableError ? 'TableError' : error instanceof FormatError ? 'FormatError' : 'DmError';
  const { code, errno, message, hint, step } = error;
  return { code, errno, message, hint, step, class: kind };
}

const CLASSES = { DmError, TableError, FormatError };

/** Anything that is not such an error becomes one that says so. */
export function fromWire(wire: unknown): DmError {
  const { code, errno, message, hint, step, class: kind } = (wire ?? {}) as Partial<WireError>;
  if (typeof code !== 'string' || typeof message !== 'string' || typeof errno !== 'string' || !(errno in ERRNO))
    return new DmError('PROTOCOL', 'EIO', 'The daemon answered with something that is not an error of dmkit');
  const Class = CLASSES[kind ?? 'DmError'] ?? DmError;
  const error = new Class(code, errno, message, { hint: typeof hint === 'string' ? hint : undefined });
  return Object.assign(error, isStep(step) && { step });
}

const isStep = (step: unknown): step is FailedStep => {
  const { call, major, minor } = (step ?? {}) as Partial<FailedStep>;
  return (call === 'load' || call === 'resume') && Number.isInteger(major) && Number.isInteger(minor);
};

/** For people with curl; dmkit itself reads the body. */
export function httpStatus(error: WireError): number {
  if (error.code === 'BAD_REQUEST') return 400;
  if (error.code === 'INTERNAL') return 500;
  if (error.errno === 'ENXIO' || error.errno === 'ENOENT') return 404;
  return 409;
}
