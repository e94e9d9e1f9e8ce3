export { FailingDevice } from './failing-device.ts';
export { FakeClock } from './fake-clock.ts';
export { FakeDisks } from './fake-disks.ts';
export { SlowDevice } from './slow-device.ts';
export { type TargetSuite, targetSuite } from './target-suite.ts';
