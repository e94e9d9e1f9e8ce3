/** What a wrong call, and `help`, print to stderr. */

export const USAGE = `Usage:

dmsetup [options] <command> [<argument>...]

Make and remove devices:
  create <name> [-u <uuid>] [-n | --table <table> | <table file>] [-r]
                [-j <major> -m <minor>] [--readahead {[+]<sectors>|auto|none}]
  create --concise [<name>,[<uuid>],[<minor>],[ro|rw],<table>[,<table>...][;<name>,...]]
  remove [-f|--force] [--deferred] [--retry] <device>...
  remove_all [-f|--force] [--deferred]
  rename <device> <new name>
  rename <device> --setuuid <uuid>

Tables (a line a target: <start sector> <sectors> <type> <arguments>):
  load|reload <device> [--table <table> | <table file>] [-r]
  suspend|resume [--noflush] [--nolockfs] <device>...
  clear <device>...
  wipe_table [-f|--force] [--noflush] [--nolockfs] <device>...
  message <device> <sector> <word>...
  setgeometry <device> <cylinders> <heads> <sectors> <start>

Look:
  ls [--target <type>] [--exec <command>] [-o devno|devname|blkdevname] [--tree [-o <tree options>]]
  info [<device>...]
  info -c [-o [+]<fields>] [-O <sort fields>] [-S <selection>] [--noheadings] [--separator <text>]
          [--nameprefixes [--unquoted]] [--rows] [--count <n> [--interval <s>]] [<device>...]
  table [--concise] [--target <type>] [--inactive] [<device>...]
  status [--target <type>] [--inactive] [--noflush] [<device>...]
  deps [-o devno|devname|blkdevname] [<device>...]
  measure [<device>...]
  wait <device> [<event number>]
  targets | target-version <type>... | version

Names and nodes:
  mangle [<device>...] | mknodes [<device>...] | splitname <name> [<subsystem>]
  udevcreatecookie | udevreleasecookie [<cookie>] | udevcomplete <cookie>
  udevcomplete_all [<minutes>] | udevcookies | udevflags <cookie>

help [-c] shows this, with -c the report fields too.

<device> is a name, a path, or -u <uuid>, or -j <major> -m <minor>.
A table is read from standard input when neither --table nor a file gives it.
Tree options: device, nodevice, blkdevname, active, open, rw, uuid; ascii, utf, vt100; compact, inverted, notrunc.
Everywhere: -v, --manglename {auto|hex|none}, -S <selection> on commands that take several devices.

`;

export const STATISTICS_USAGE = `Usage:

dmsetup stats
  I/O statistics regions are not kept here.

`;
