/**
 * Messages of the transmission phase (doc/proto.md, "Transmission"), big-endian.
 *
 *     request            simple reply       structured reply chunk
 *     0  magic           0  magic           0  magic
 *     4  flags           4  error           4  flags (1: last chunk)
 *     6  type            8  cookie          6  type
 *     8  cookie          16 data of a READ  8  cookie
 *     16 offset                             16 length of what follows
 *     24 length                             20 payload
 *     28 data of a WRITE
 *
 * A cookie is only compared and echoed: two 32-bit halves. Read by the thousand, fields are read in place by offset
 * (`requestHeader.at.length`); the whole-value `get` and `set` are for clients and tests.
 */
import { big, struct } from '../struct.ts';

const cookie = { cookieHigh: big.u32, cookieLow: big.u32 };

export const requestHeader = struct({
  magic: big.u32,
  flags: big.u16,
  type: big.u16,
  ...cookie,
  offset: big.u64,
  length: big.u32,
});

export const simpleReply = struct({ magic: big.u32, error: big.u32, ...cookie });

export const chunkHeader = struct({ magic: big.u32, flags: big.u16, type: big.u16, ...cookie, length: big.u32 });

/** Payload of OFFSET_HOLE; OFFSET_DATA has the offset and then data. */
export const offsetHole = struct({ offset: big.u64, length: big.u32 });

/** One of the descriptors that follow the context id of a BLOCK_STATUS chunk. */
export const blockDescriptor = struct({ length: big.u32, flags: big.u32 });

/** Start of an ERROR chunk; the message of `messageLength` bytes follows, then, for ERROR_OFFSET, the offset. */
export const errorChunk = struct({ error: big.u32, messageLength: big.u16 });

export const REQUEST_SIZE = requestHeader.size;
export const SIMPLE_REPLY_SIZE = simpleReply.size;
export const CHUNK_HEADER_SIZE = chunkHeader.size;
