import { define } from './command.ts';
export const command = define({ name: 'demo', operands: '', summary: '', async run() {} });
