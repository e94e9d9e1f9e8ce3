/** What a check finds in metadata that is damaged; `test/system/thin-tools.test.ts` compares it with thin_check. */
import { expect, test } from 'vitest';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { DAMAGES, Image, wholeImage } from '../../support/thin-damage.ts';

test('metadata that is whole has nothing to find', async () => {
  expect((await checkMetadata(await wholeImage())).findings).toEqual([]);
});

test.each(DAMAGES)('78. $name is found', async ({ apply, found }) => {
  const device = await wholeImage();
  apply(new Image(device));
  if (found === 'nothing') expect(await checkMetadata(device)).toMatchObject({ findings: [], needsCheck: true });
  else if (found[0] === 'refused') await expect(checkMetadata(device)).rejects.toThrow(found[1]);
  else {
    const [severity, message] = found;
    const { findings } = await checkMetadata(device);
    expect(findings).toContainEqual({ severity, message: expect.stringMatching(message) });
    // What harms nobody is not told as more than it is.
    if (severity !== 'error')
      expect(findings.every((each) => each.severity === severity || each.severity === 'total')).toBe(true);
  }
});
