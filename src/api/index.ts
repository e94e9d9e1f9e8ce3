export { DmError, type Errno, errnoText } from '../errors.ts';
export type {
  Control,
  CreateOptions,
  Dependency,
  DeviceInfo,
  DeviceRef,
  LoadOptions,
  SuspendOptions,
  TargetSpec,
  TargetText,
  TargetVersion,
} from '../mapper/control.ts';
