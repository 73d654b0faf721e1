// What kiln.toml is checked for before anything is made of it: the patterns and ranges of the same schema, and the rules
// that no schema has. `test/vectors.json` holds examples of each, which both sides' tests go through.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { Token } from 'aws-cdk-lib';

import { refuse } from './parameters';
import type { RunnerGroupProps } from './runner-group';

interface Place {
  readonly pattern?: string;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly maxLength?: number;
  readonly items?: Place;
  readonly propertyNames?: Place;
  readonly additionalProperties?: Place;
  readonly properties?: Readonly<Record<string, Place>>;
}

/** kiln.toml's schema, as it is committed; copied beside the code when that is built. */
const SCHEMA = JSON.parse(readFileSync(join(__dirname, '..', 'kiln.schema.json'), 'utf8')) as Place;

function at(...path: readonly string[]): Place {
  const step = (place: Place | undefined, name: string) => (place as Record<string, Place> | undefined)?.[name];
  return path.reduce<Place | undefined>(step, SCHEMA) ?? refuse(`kiln.schema.json has no ${path.join('.')}`);
}

const FLEET = ['properties', 'fleet', 'additionalProperties', 'properties'] as const;

/** GitHub registers no older runner; as in crates/config. */
const OLDEST_RUNNER = [2, 329, 0] as const;

/** As in crates/config/src/environment.rs. */
const LOADERS = [
  'BASHOPTS', 'BASH_ENV', 'DOTNET_ADDITIONAL_DEPS', 'DOTNET_SHARED_STORE', 'DOTNET_STARTUP_HOOKS', 'GCONV_PATH',
  'GETCONF_DIR', 'GLIBC_TUNABLES', 'LOCPATH', 'NIS_PATH', 'NLSPATH', 'PS4', 'SHELLOPTS',
];
const LOADER_FAMILIES = ['LD_', 'CORECLR_', 'COR_PROFILER', 'DOTNET_PROFILER'];
const RESERVED_FAMILIES = ['ACTIONS_ALLOW_UNSECURE_', 'ACTIONS_RUNNER_', 'GITHUB_', 'KILN_', 'RUNNER_'];

/** What has the look of a secret; as in crates/config/src/config/secret.rs. */
const SECRETS = [
  /(?<![A-Za-z0-9])(gh[pousr]_|github_pat_|glpat-|dckr_pat_|xox[bp]-)[A-Za-z0-9_-]{16}/,
  /(?<![A-Za-z0-9])npm_[A-Za-z0-9_-]{30}/,
  /PRIVATE KEY( BLOCK)?-----|LS0tLS1CRUdJTi/,
  /:\/\/[^\s/"'?#]*:[^\s/"'?#]+@/,
];

function matches(value: string, place: Place, what: string): void {
  if (Token.isUnresolved(value)) {
    return;
  }
  const fits = typeof value === 'string' && new RegExp(place.pattern ?? '', 'u').test(value);
  if (!fits || [...value].length > (place.maxLength ?? Infinity)) {
    refuse(`${what} is ${JSON.stringify(value)}: ${place.pattern ?? 'a text'} was expected`);
  }
}

function ranges(value: number | undefined, place: Place, what: string): void {
  if (value === undefined || Token.isUnresolved(value)) {
    return;
  }
  const { minimum = 0, maximum = Infinity } = place;
  if (!Number.isInteger(value) || value < minimum || value > maximum) {
    refuse(`${what} is ${value}: a whole number from ${minimum} to ${maximum} was expected`);
  }
}

function distinct(values: readonly string[], what: string): void {
  const folded = values.map((value) => value.toLowerCase());
  const twice = values.find((_, index) => folded.indexOf(folded[index] ?? '') !== index);
  if (twice !== undefined) {
    refuse(`${what} has ${JSON.stringify(twice)} twice`);
  }
}

/** The processor that a type's name tells: Graviton families have a `g` behind the generation's digit, and a1. */
function isArm(type: string): boolean {
  const family = type.split('.')[0] ?? '';
  return family === 'a1' || /[0-9].*g/.test(family);
}

/** A proxy's address with its scheme: one without is http. */
export function withScheme(address: string): string {
  const trimmed = address.trim();
  return trimmed === '' || trimmed.includes('://') ? trimmed : `http://${trimmed}`;
}

/** Is the variable a proxy's address? */
export function namesAProxy(name: string): boolean {
  return /_proxy$/i.test(name) && !/^no_proxy$/i.test(name);
}

function environment(variables: Readonly<Record<string, string>>): void {
  for (const [name, value] of Object.entries(variables)) {
    const upper = name.toUpperCase();
    const isOf = (families: readonly string[]) => families.some((family) => upper.startsWith(family));
    matches(name, at(...FLEET, 'environment', 'propertyNames'), 'a variable of environment');
    if (LOADERS.includes(upper) || isOf(LOADER_FAMILIES)) {
      refuse(`environment has ${name}, which decides what code programs load`);
    }
    if (isOf(RESERVED_FAMILIES)) {
      refuse(`environment has ${name}, which belongs to the runner or to Kiln`);
    }
    if (Token.isUnresolved(value)) {
      continue;
    }
    // The value is not said: it may be a secret.
    if (/[\u0000-\u0008\u000a-\u001f\u007f-\u009f]/.test(value)) {
      refuse(`the value of ${name} has a line break or control character`);
    }
    if (SECRETS.some((secret) => secret.test(value)) || (/^AWS_(SECRET_ACCESS_KEY|SESSION_TOKEN)$/.test(name) && value !== '')) {
      refuse(`the value of ${name} is a secret, which anyone on an instance could read`);
    }
    if (namesAProxy(name) && withScheme(value) !== '') {
      const address = withScheme(value);
      const url = URL.canParse(address) ? new URL(address) : undefined;
      if (url === undefined || url.hostname === '' || (url.port === '' && !/^https?:$/.test(url.protocol))) {
        refuse(`${name} is no proxy's address with its port`);
      }
    }
  }
}

function labels(props: RunnerGroupProps): void {
  const { labels: list = [], registration = 'persistent', instanceTypes } = props;
  if (registration !== 'persistent' && registration !== 'ephemeral') {
    refuse(`registration is ${JSON.stringify(registration)}: the construct makes a group, with persistent or ephemeral runners`);
  }
  const place = at(...FLEET, 'labels');
  if (list.length > (place.maxItems ?? 0)) {
    refuse(`labels has ${list.length} entries: at most ${place.maxItems} were expected`);
  }
  if (list.length === 0 && registration === 'ephemeral') {
    refuse('labels has no entry: an ephemeral runner needs one');
  }
  list.forEach((label) => matches(label, place.items ?? {}, 'an entry of labels'));
  distinct(list, 'labels');
  const given = ['self-hosted', 'linux', 'x64', 'arm64'].find((own) => list.some((label) => label.toLowerCase() === own));
  if (given !== undefined) {
    refuse(`labels has ${given}: every runner has self-hosted, Linux and ${isArm(instanceTypes[0] ?? '') ? 'ARM64' : 'X64'}`);
  }
}

function types(list: readonly string[]): void {
  if (list.length === 0) {
    refuse('instanceTypes has no entry');
  }
  list.forEach((type) => matches(type, at(...FLEET, 'instance_types', 'items'), 'an entry of instanceTypes'));
  distinct(list, 'instanceTypes');
  const known = list.filter((type) => !Token.isUnresolved(type));
  if (known.some((type) => isArm(type) !== isArm(known[0] ?? ''))) {
    refuse(`instanceTypes has processors of two architectures: ${list.join(', ')}`);
  }
  if (known.some((type) => type.startsWith('mac'))) {
    refuse('instanceTypes has a type for macOS');
  }
}

function tags(given: Readonly<Record<string, string>>): void {
  distinct(Object.keys(given), 'instanceTags');
  for (const [key, value] of Object.entries(given)) {
    matches(key, at('properties', 'tags', 'propertyNames'), 'a key of instanceTags');
    if (/^(aws:|kiln:)|^name$/i.test(key)) {
      refuse(`instanceTags has ${key}, which is not yours to set`);
    }
    if (!Token.isUnresolved(value) && !/^[A-Za-z0-9 _.:/=+@-]{0,256}$/.test(value)) {
      refuse(`the value of the tag ${key} is none that Kiln can set`);
    }
  }
}

function github(given: RunnerGroupProps['github']): void {
  for (const address of given === undefined ? [] : [given.url, given.apiUrl ?? given.url]) {
    const url = URL.canParse(address) ? new URL(address) : refuse('an address of github is none');
    const loopback = ['localhost', '127.0.0.1', '[::1]'].includes(url.hostname);
    if (url.username !== '' || url.password !== '' || !(url.protocol === 'https:' || (url.protocol === 'http:' && loopback))) {
      refuse('an address of github is not https, or has a user in it');
    }
  }
  if (given !== undefined && (new URL(given.url).pathname !== '/' || new URL(given.url).hostname === 'www.github.com')) {
    refuse(`github.url is ${given.url}: GitHub's web address without a path was expected`);
  }
}

function version(text: string): void {
  matches(text, at('properties', 'runner', 'properties', 'version'), 'runnerVersion');
  const numbers = text.split('.').map(Number);
  const differing = OLDEST_RUNNER.findIndex((number, index) => numbers[index] !== number);
  if (!Token.isUnresolved(text) && differing >= 0 && (numbers[differing] ?? 0) < (OLDEST_RUNNER[differing] ?? 0)) {
    refuse(`runnerVersion is ${text}: GitHub registers none before ${OLDEST_RUNNER.join('.')}`);
  }
}

/** Refuses what kiln.toml would refuse. */
export function check(props: RunnerGroupProps): void {
  matches(props.organization, at('properties', 'organization'), 'organization');
  matches(props.fleet, at('properties', 'fleet', 'propertyNames'), 'fleet');
  const { id, installationId } = props.app;
  if (!/^[1-9][0-9]{0,15}$/.test(id)) {
    matches(id, at('properties', 'app', 'properties', 'client_id'), 'app.id');
  }
  if (/^[0-9a-f]{40}$/i.test(id)) {
    refuse('app.id is a client secret; the client id begins with Iv');
  }
  ranges(installationId, at('properties', 'app', 'properties', 'installation_id'), 'app.installationId');
  version(props.runnerVersion);
  github(props.github);
  types(props.instanceTypes);
  labels(props);
  const group = props.runnerGroup ?? 'Default';
  if (!Token.isUnresolved(group) && (group.trim() !== group || group === '' || /[\u0000-\u001f\u007f-\u009f]/.test(group))) {
    refuse(`runnerGroup is ${JSON.stringify(group)}: a name without blanks around it was expected`);
  }
  ranges(props.minSize, at(...FLEET, 'min'), 'minSize');
  ranges(props.maxSize, at(...FLEET, 'max'), 'maxSize');
  ranges(props.failedBootGraceSecs, at(...FLEET, 'failed_boot_grace_secs'), 'failedBootGraceSecs');
  ranges(props.drainTimeoutSecs, at(...FLEET, 'drain_timeout_secs'), 'drainTimeoutSecs');
  ranges(props.maxAgeSecs, at(...FLEET, 'max_age_secs'), 'maxAgeSecs');
  ranges(props.idleLimitSecs, at(...FLEET, 'idle_limit_secs'), 'idleLimitSecs');
  const { terminationHeartbeatTimeoutSecs = 300, drainTimeoutSecs = 21600 } = props;
  if (drainTimeoutSecs > terminationHeartbeatTimeoutSecs * 100) {
    refuse(`drainTimeoutSecs is ${drainTimeoutSecs}, more than a hundred heartbeats of ${terminationHeartbeatTimeoutSecs} s`);
  }
  if (props.spot !== undefined && (props.spot.onDemandBase ?? 0) >= props.maxSize) {
    refuse('spot.onDemandBase leaves no instance to be spot');
  }
  environment(props.environment ?? {});
  tags(props.instanceTags ?? {});
}
