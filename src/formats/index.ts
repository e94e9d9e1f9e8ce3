/** The door `dmkit/formats`: bytes to values and back, without any I/O. */
export * as exceptionStore from './exception-store.ts';
export * as logWrites from './log-writes.ts';
export { type NbdAddress, parseNbdUri, printNbdUri } from './nbd/uri.ts';
export { recognise, SIGNATURE_BYTES, type Signature } from './signatures.ts';
export { big, type Field, type Struct, struct, u8, u16, u32, u64 } from './struct.ts';
