/** What the first bytes of a disk or file say it holds. Names only: no field beyond the signature is trusted. */

/** What is known of one format. */
export interface Signature {
  /** As `file`, `blkid` and `qemu-img` call it. */
  readonly name: string;
  /**
   * `image`: the bytes are not the disk's own (qcow2, a compressed file). `store`: dmkit's own business. `volume`: a
   * partition table, file system or container that lies on the disk itself.
   */
  readonly kind: 'image' | 'store' | 'volume';
  /** Bytes from the start of the disk. */
  readonly at: number;
  readonly bytes: Uint8Array;
  /** For `qemu-img -f`, or the program that unpacks. */
  readonly tool?: string;
}

const ascii = (text: string) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));

const entry = (kind: Signature['kind'], name: string, at: number, bytes: string, tool?: string): Signature => ({
  kind,
  name,
  at,
  bytes: ascii(bytes),
  tool,
});

/** The name that `recognise` gives to an exception store. */
export const COW_STORE = 'snapshot COW store';

/** Bytes from the start of a disk that `recognise` wants to see. */
export const SIGNATURE_BYTES = 0x10048;

/** First match wins: what wraps a disk comes before what lies on one, the rarer before the partition table. */
export const SIGNATURES: readonly Signature[] = [
  entry('image', 'qcow2', 0, 'QFI\xfb', 'qcow2'),
  entry('image', 'qed', 0, 'QED\0', 'qed'),
  entry('image', 'vmdk', 0, 'KDMV', 'vmdk'),
  entry('image', 'vmdk', 0, 'COWD', 'vmdk'),
  entry('image', 'vmdk', 0, '# Disk DescriptorFile', 'vmdk'),
  entry('image', 'vhdx', 0, 'vhdxfile', 'vhdx'),
  entry('image', 'vhd', 0, 'conectix', 'vpc'),
  entry('image', 'vdi', 0x40, '\x7f\x10\xda\xbe', 'vdi'),
  entry('image', 'parallels', 0, 'WithoutFreeSpace', 'parallels'),
  entry('image', 'parallels', 0, 'WithouFreSpacExt', 'parallels'),
  entry('image', 'gzip', 0, '\x1f\x8b\x08', 'gunzip'),
  entry('image', 'xz', 0, '\xfd7zXZ\0', 'unxz'),
  entry('image', 'zstd', 0, '\x28\xb5\x2f\xfd', 'unzstd'),
  entry('image', 'bzip2', 0, 'BZh', 'bunzip2'),
  entry('store', COW_STORE, 0, 'SnAp'),
  entry('store', 'thin pool metadata', 32, '\xba\x52\x9c\x01\0\0\0\0'),
  entry('store', 'log-writes log', 0, 'rhswfsj\0'),
  ...[0, 512, 1024, 1536].map((at) => entry('store', 'LVM2 physical volume', at, 'LABELONE')),
  entry('volume', 'LUKS container', 0, 'LUKS\xba\xbe'),
  entry('volume', 'XFS file system', 0, 'XFSB'),
  entry('volume', 'squashfs file system', 0, 'hsqs'),
  entry('volume', 'NTFS file system', 3, 'NTFS    '),
  entry('volume', 'exFAT file system', 3, 'EXFAT   '),
  entry('volume', 'FAT12 file system', 54, 'FAT12   '),
  entry('volume', 'FAT16 file system', 54, 'FAT16   '),
  entry('volume', 'FAT32 file system', 82, 'FAT32   '),
  entry('volume', 'GPT partition table', 512, 'EFI PART'),
  entry('volume', 'erofs file system', 1024, '\xe2\xe1\xf5\xe0'),
  entry('volume', 'F2FS file system', 1024, '\x10\x20\xf5\xf2'),
  entry('volume', 'ext2, ext3 or ext4 file system', 1080, '\x53\xef'),
  entry('volume', 'swap space', 4086, 'SWAPSPACE2'),
  entry('volume', 'md RAID member', 4096, '\xfc\x4e\x2b\xa9'),
  entry('volume', 'ISO 9660 file system', 0x8001, 'CD001'),
  entry('volume', 'btrfs file system', 0x10040, '_BHRfS_M'),
  entry('volume', 'DOS partition table', 510, '\x55\xaa'),
];

/** `start` is the beginning of the disk; what lies past its end matches nothing. */
export function recognise(start: Uint8Array): Signature | undefined {
  return SIGNATURES.find(
    ({ at, bytes }) => at + bytes.length <= start.length && bytes.every((byte, index) => start[at + index] === byte),
  );
}
