export { FailingDevice } from './failing-device.ts';
export { FakeDisks } from './fake-disks.ts';
export { SlowDevice } from './slow-device.ts';
export { type TargetSuite, targetSuite } from './target-suite.ts';
