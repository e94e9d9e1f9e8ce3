/** Mapped devices as real block devices, as plain data. */

export interface Attachment {
  /** The mapped device's name. */
  name: string;
  /** `/dev/nbd0` or `/dev/loop3`. */
  path: string;
  /** `nbd`: the kernel's NBD client. `fuse`: a file of nbdfuse under a loop device. */
  way: 'nbd' | 'fuse';
  readOnly: boolean;
  /** False: the block device is still there, what fed it is gone; `detach` clears it away. */
  alive: boolean;
}

export interface AttachControl {
  /** ENXIO: no such device. EBUSY: attached already. EOPNOTSUPP: this machine has no way. EPERM: needs root. */
  attach(name: string): Promise<Attachment>;
  /** By device name or by path. EBUSY: mounted or open. ENXIO: not attached. */
  detach(name: string): Promise<Attachment>;
  attachments(): Promise<Attachment[]>;
}
