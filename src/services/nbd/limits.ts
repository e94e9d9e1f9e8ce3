/** Everything a client can ask for has a limit; docs/nbd.md lists them. */
export const LIMITS = {
  /** Connections at once, over all listeners. */
  connections: 256,
  /** From accept to the transmission phase. */
  handshakeMs: 30_000,
  /** Data of one option; a longer one is skipped and answered with ERR_TOO_BIG. */
  optionBytes: 64 * 1024,
  /** All that a client may send before the transmission phase. */
  handshakeBytes: 4 * 1024 * 1024,
  options: 1024,
  /** Payload of one request; the maximum block size that INFO advertises. */
  payloadBytes: 32 * 1024 * 1024,
  /** Requests and their bytes that a device may have under way for one connection before it is no longer read. */
  requestsInFlight: 256,
  bytesInFlight: 64 * 1024 * 1024,
  /** Payloads and replies of all connections together, beyond what each has of its own; see memory.ts. */
  memoryBytes: 512 * 1024 * 1024,
  /** For the rest of a payload, or for taking a reply, while others wait for that memory. */
  stallMs: 30_000,
  /** Replies a client has not taken; the connection is not read while there are more. */
  replyBytes: 4 * 1024 * 1024,
  /** Descriptors of one block status reply. */
  extents: 4096,
} as const;

export type Limits = { readonly [K in keyof typeof LIMITS]: number };
