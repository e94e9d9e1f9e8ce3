/** A FAT12 floppy image with one file, for machines without mkfs.ext4 (Microsoft FAT specification 1.03). */

const SECTOR = 512;
const SECTORS = 2880;
const RESERVED = 1;
const FATS = 2;
const FAT_SECTORS = 9;
const ROOT_ENTRIES = 224;
const ROOT_SECTORS = (ROOT_ENTRIES * 32) / SECTOR;
/** Where cluster 2, the first one, lies; a cluster is one sector. */
const DATA = RESERVED + FATS * FAT_SECTORS + ROOT_SECTORS;
const END_OF_CHAIN = 0xfff;

/** 1.44 MB. `name` is 8.3 in upper case, without its dot: `README  TXT`. */
export function fatImage(name: string, content: string): Buffer {
  const image = Buffer.alloc(SECTORS * SECTOR);
  image.set([0xeb, 0x3c, 0x90]);
  image.write('MSDOS5.0', 3, 'latin1');
  image.writeUInt16LE(SECTOR, 11);
  image[13] = 1; // sectors per cluster
  image.writeUInt16LE(RESERVED, 14);
  image[16] = FATS;
  image.writeUInt16LE(ROOT_ENTRIES, 17);
  image.writeUInt16LE(SECTORS, 19);
  image[21] = 0xf0; // removable
  image.writeUInt16LE(FAT_SECTORS, 22);
  image.writeUInt16LE(18, 24); // sectors per track
  image.writeUInt16LE(2, 26); // heads
  image[38] = 0x29; // the three fields that follow are there
  image.writeUInt32LE(0x19700101, 39);
  image.write('DMKIT DEMO ', 43, 'latin1');
  image.write('FAT12   ', 54, 'latin1');
  image.writeUInt16LE(0xaa55, 510);

  const data = Buffer.from(content, 'latin1');
  const clusters = Math.max(1, Math.ceil(data.length / SECTOR));
  const next = (cluster: number) => (cluster === clusters + 1 ? END_OF_CHAIN : cluster + 1);
  for (let fat = 0; fat < FATS; fat++) {
    const at = (RESERVED + fat * FAT_SECTORS) * SECTOR;
    setEntry(image, at, 0, 0xff0);
    setEntry(image, at, 1, END_OF_CHAIN);
    for (let cluster = 2; cluster < clusters + 2; cluster++) setEntry(image, at, cluster, next(cluster));
  }
  const entry = (RESERVED + FATS * FAT_SECTORS) * SECTOR;
  image.write(name, entry, 11, 'latin1');
  image[entry + 11] = 0x20; // archive
  image.writeUInt16LE(0x0021, entry + 24); // 1980-01-01
  image.writeUInt16LE(2, entry + 26);
  image.writeUInt32LE(data.length, entry + 28);
  data.copy(image, DATA * SECTOR);
  return image;
}

/** Two entries of 12 bits share three bytes. */
function setEntry(image: Buffer, fat: number, cluster: number, value: number): void {
  const at = fat + Math.floor(cluster * 1.5);
  const pair = image.readUInt16LE(at);
  image.writeUInt16LE(cluster % 2 === 0 ? (pair & 0xf000) | value : (pair & 0x000f) | (value << 4), at);
}
