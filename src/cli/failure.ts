/**
 * Ends a command with status 1. Its lines are printed to stderr as they are; the command's own way of saying that it
 * failed (`Command failed.`) follows unless `last` is false.
 */
export class CommandFailure extends Error {
  readonly last: boolean;

  constructor(text = '', last = true) {
    super(text);
    this.last = last;
  }
}
