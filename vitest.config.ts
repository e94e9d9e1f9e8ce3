import { defineConfig } from 'vitest/config';

const project = (name: string, include: string[], testTimeout: number, globalSetup: string[] = []) => ({
  test: { name, include, testTimeout, hookTimeout: testTimeout, environment: 'node' as const, globalSetup },
});

/** unit: needs nothing but Node. system: real programs and root. kernel: a Linux kernel in software emulation. */
export default defineConfig({
  test: {
    projects: [
      project('unit', ['src/**/*.test.ts', 'test/unit/**/*.test.ts'], 60_000),
      project('system', ['test/system/**/*.test.ts'], 180_000, ['test/system/build.ts']),
      project('kernel', ['test/kernel/**/*.test.ts'], 600_000),
    ],
  },
});
