/**
 * Plays scenarios on dmkit's mapper and logs them as a real kernel's run is logged, so that two runs are compared as
 * text. A scenario is a list of lines:
 *
 *     run dmsetup create NAME --table "LINE"      and suspend, resume, remove, message
 *     run blkdiscard -o BYTES -l BYTES /dev/mapper/NAME
 *     put PATTERN NAME SKIP SEEK COUNT            sectors; one write and a flush
 *     merged NAME                                 waits until its merge has ended
 *     state LABEL       sum LABEL NAME            (test/fixtures/kernel/README.md explains what is logged)
 *
 * Disks are `/dev/loopN`, numbered 7:N, in memory.
 */
import type { BlockDevice } from '../../src/device/block-device.ts';
import { MemoryDevice } from '../../src/device/memory.ts';
import { DmError, errnoText } from '../../src/errors.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { FakeDisks } from '../../src/testing/fake-disks.ts';
import { bytes, SECTOR } from '../../src/units.ts';
import { type PatternTag, pattern, readAll, sha256, writeAt } from '../unit/golden.ts';

export class Session {
  readonly disks = new FakeDisks();
  /** The kernel's usual major. */
  readonly mapper = new Mapper({ major: 253, opener: this.disks });
  readonly log: string[] = [];
  readonly #loops: BlockDevice[] = [];

  /** Makes `/dev/loopN`, zeroes where there is no content. */
  loop(index: number, sectors: number, content?: Uint8Array): MemoryDevice {
    const disk = new MemoryDevice(sectors * SECTOR, { name: `7:${index}` });
    if (content) disk.write(bytes(0), content, 0, content.length);
    this.add(index, disk);
    return disk;
  }

  /** Makes a disk that is called `7:N` known as `/dev/loopN`. */
  add(index: number, disk: BlockDevice): void {
    this.disks.add(disk, `/dev/loop${index}`);
    this.#loops[index] = disk;
  }

  content(index: number): Promise<Buffer> {
    return readAll(this.#loops[index]);
  }

  async play(scenario: readonly string[]): Promise<string[]> {
    const from = this.log.length;
    for (const line of scenario) {
      const [word, ...rest] = line.split(' ');
      if (word === 'run') this.log.push(...(await this.#logged(rest.join(' ').replaceAll('"', ''))));
      else if (word === 'put') await this.#loggedPut(rest);
      else if (word === 'state') this.log.push(`# state ${rest[0]}`, ...(await this.state()));
      else if (word === 'merged') {
        await this.merged(rest[0]);
        this.log.push(line);
      } else if (word === 'sum') await this.#loggedSum(rest);
      else throw new Error(`A scenario has no line such as: ${line}`);
    }
    return this.log.slice(from);
  }

  /** `create NAME --table LINE`, `suspend`, `resume`, `remove NAME`. Throws what the mapper throws. */
  async dmsetup([command, name, ...rest]: readonly string[]): Promise<void> {
    const ref = { name };
    if (command === 'suspend' || command === 'resume' || command === 'remove') await this.mapper[command](ref);
    else if (command === 'message') await this.mapper.message(ref, Number(rest[0]), rest.slice(1).join(' '));
    else if (command === 'create') await this.#create(name, rest.slice(1).join(' '));
    else if (command === 'load') await this.mapper.load(ref, [targetSpec(rest.slice(1).join(' '))]);
    else throw new Error(`A scenario has no command dmsetup ${command}`);
  }

  /** Resolves with what the device answered, undefined for success. */
  async put(name: string, seek: number, content: Uint8Array): Promise<string | undefined> {
    try {
      await writeAt(this.mapper.device({ name }), seek, content);
    } catch (error) {
      if (error instanceof DmError) return errnoText(error.errno);
      throw error;
    }
  }

  /** `table NAME: LINE` and `status NAME: LINE` of every device. */
  async state(): Promise<string[]> {
    const lines: string[] = [];
    for (const { name } of await this.mapper.list())
      for (const kind of ['table', 'status'] as const)
        for (const { start, length, type, text } of await this.mapper[kind]({ name }))
          lines.push(`${kind} ${name}: ${start} ${length} ${type} ${text}`);
    return lines;
  }

  async sum(name: string): Promise<string> {
    return sha256(await readAll(this.mapper.device({ name })));
  }

  /** Waits until a merge has left nothing in its store but metadata. Throws when it cannot end. */
  async merged(name: string): Promise<void> {
    for (;;) {
      const [{ text }] = await this.mapper.status({ name });
      const [, allocated, metadata] = /^(\d+)\/\d+ (\d+)$/.exec(text) ?? [];
      if (allocated === undefined) throw new Error(`No merge of ${name} can end from here: ${text}`);
      if (allocated === metadata) return;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Removes every device, so that all that must be on the disks is there. */
  async close(): Promise<void> {
    await this.mapper.removeAll();
  }

  async #create(name: string, table: string): Promise<void> {
    await this.mapper.create(name);
    try {
      await this.mapper.load({ name }, [targetSpec(table)]);
      await this.mapper.resume({ name });
    } catch (error) {
      await this.mapper.remove({ name });
      throw error;
    }
  }

  async #logged(command: string): Promise<string[]> {
    const words = command.split(' ');
    try {
      if (words[0] === 'blkdiscard') await this.#discard(words);
      else await this.dmsetup(words.slice(1));
      return [`$ ${command}`];
    } catch (error) {
      if (error instanceof DmError) return [`$ ${command}`, '[exit 1]'];
      throw error;
    }
  }

  async #discard(words: readonly string[]): Promise<void> {
    const [, , at, , length, path] = words;
    await this.mapper.device({ name: path.replace('/dev/mapper/', '') }).discard(bytes(Number(at)), Number(length));
  }

  async #loggedSum([label, name]: string[]): Promise<void> {
    const sum = await this.sum(name).catch((error) => {
      if (error instanceof DmError) return `[failed: ${errnoText(error.errno)}]`;
      throw error;
    });
    this.log.push(`sha256 ${label} ${sum}`);
  }

  async #loggedPut([tag, name, skip, seek, count]: string[]): Promise<void> {
    const why = await this.put(name, Number(seek), pattern(tag as PatternTag, Number(skip), Number(count)));
    this.log.push(`put ${tag} /dev/mapper/${name} ${skip} ${seek} ${count}${why ? ` [failed: ${why}]` : ''}`);
  }
}

function targetSpec(line: string) {
  const [start, length, type, ...args] = line.split(' ');
  return { start: Number(start), length: Number(length), type, args: args.join(' ') };
}
