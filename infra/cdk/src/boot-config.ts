// What an instance is told at boot: the JSON that `crates/config/src/boot.rs` defines, letter by letter. The test compares
// it with a document that the Rust side wrote.

import { namesAProxy, withScheme } from './checks';

/** Where the App's private key is kept. */
export type KeyStore = 'kms' | 'secrets-manager';

/** How long a runner lives: job after job, or a fresh instance for each job. */
export type Registration = 'persistent' | 'ephemeral';

/**
 * May a job reach the instance's metadata service? With `allowed`, whoever writes a workflow can sign as the App. With
 * `off`, for ephemeral fleets only, the instance has none while its job runs.
 */
export type MetadataAccess = 'blocked' | 'allowed';

/** May a job use docker? Whoever may is as good as root on the instance. */
export type DockerAccess = 'allowed' | 'blocked';

/** The GitHub App that registers runners. */
export interface GitHubApp {
  /** The client id, at the top of the App's settings, or the App's number in decimal. */
  readonly id: string;
  /** The number at the end of the installation's address. Looked up when absent, which costs each boot a request. */
  readonly installationId?: number;
}

/** GitHub's addresses, for GitHub Enterprise Server. */
export interface GitHubProps {
  /** The web address, without a path. */
  readonly url: string;
  /** The REST API's base; `https://HOST/api/v3` when absent. */
  readonly apiUrl?: string;
}

/** What the runners of one fleet are. */
export interface BootConfigProps {
  /** The GitHub organization's login. */
  readonly organization: string;
  /** The fleet's name: lower-case letters, digits and hyphens, at most 24. The first part of its runners' names. */
  readonly fleet: string;
  /** The GitHub App. */
  readonly app: GitHubApp;
  /** github.com, when absent. */
  readonly github?: GitHubProps;
  /** Where the App's key is, put there by `cargo xtask rotate-key`. @default 'kms' */
  readonly keyStore?: KeyStore;
  /** How long a runner lives. @default 'persistent' */
  readonly registration?: Registration;
  /** Labels beside the ones GitHub gives every self-hosted runner. An ephemeral fleet needs one. @default none */
  readonly labels?: readonly string[];
  /** The runner group that the runners join. @default 'Default' */
  readonly runnerGroup?: string;
  /** The release of actions/runner that the image was baked with. */
  readonly runnerVersion: string;
  /** @default 'blocked' */
  readonly jobMetadataAccess?: MetadataAccess;
  /** @default 'allowed' */
  readonly jobDockerAccess?: DockerAccess;
  /** Take a job only once docker answers. @default false */
  readonly waitForDocker?: boolean;
  /** At this age, in seconds, an instance is replaced, after its job. @default never */
  readonly maxAgeSecs?: number;
  /** After so many seconds without a job an instance leaves, while there are more than the least. @default never */
  readonly idleLimitSecs?: number;
  /** Variables for the runner and its jobs. Never a secret. @default none */
  readonly environment?: Readonly<Record<string, string>>;
  /** A leaving instance that has been silent for so many seconds is given up; 30 to 7,200. @default 300 */
  readonly terminationHeartbeatTimeoutSecs?: number;
  /** How many seconds a running job may delay an instance's end; at most a hundred heartbeats. @default 21600 */
  readonly drainTimeoutSecs?: number;
  /** An instance that can't register tries on for so many seconds before it is replaced. @default 300 */
  readonly failedBootGraceSecs?: number;
}

/** What every AWS name of the organization begins with. */
export function prefix(organization: string): string {
  return ['kiln', ...organization.toLowerCase().split('-')].reduce((prefix, part) => prefix + (['fleet', 'image'].includes(part) && prefix !== 'kiln' ? '--' : '-') + part);
}

/** The stack, and the Auto Scaling group, of a fleet. */
export function stackName(organization: string, fleet: string): string {
  return `${prefix(organization)}-fleet-${fleet}`;
}

/** The alias of the App's key in KMS. */
export function keyAlias(organization: string): string {
  return `alias/${prefix(organization)}-app-key`;
}

/** The name of the secret with the App's key. */
export function keySecret(organization: string): string {
  return `${prefix(organization)}/app-key`;
}

/** The addresses that belong together, as the Rust side writes them. */
export function addresses(github: GitHubProps | undefined): { api_url: string; url: string } {
  if (github === undefined) {
    return { api_url: 'https://api.github.com/', url: 'https://github.com/' };
  }
  const url = new URL(github.url);
  if (github.apiUrl !== undefined) {
    const api = new URL(github.apiUrl);
    api.pathname = api.pathname.replace(/\/+$/, '');
    return { api_url: api.href, url: url.href };
  }
  const api = new URL(url.href);
  if (url.hostname === 'github.com' || url.hostname.endsWith('.ghe.com')) {
    api.hostname = `api.${url.hostname}`;
  } else {
    api.pathname = '/api/v3';
  }
  return { api_url: api.href, url: url.href };
}

function sorted(record: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(record).sort(([one], [other]) => (one < other ? -1 : 1)));
}

function withSchemes(variables: Readonly<Record<string, string>>): Record<string, string> {
  const value = ([name, value]: [string, string]) => [name, namesAProxy(name) ? withScheme(value) : value] as const;
  return Object.fromEntries(Object.entries(variables).map(value));
}

/** The document for the instances of the Auto Scaling group of that name. */
export function bootConfig(props: BootConfigProps, group: string): string {
  const { maxAgeSecs, idleLimitSecs, environment = {} } = props;
  const retires = maxAgeSecs !== undefined || idleLimitSecs !== undefined;
  // JSON.stringify leaves out what is undefined, and keeps the order.
  const document = {
    version: 1,
    organization: props.organization,
    fleet: props.fleet,
    github: addresses(props.github),
    app: { issuer: props.app.id, installation_id: props.app.installationId },
    key:
      (props.keyStore ?? 'kms') === 'kms'
        ? { kms: keyAlias(props.organization) }
        : { 'secrets-manager': keySecret(props.organization) },
    registration: props.registration ?? 'persistent',
    labels: props.labels ?? [],
    runner_group: props.runnerGroup ?? 'Default',
    runner: { version: props.runnerVersion, user: 'runner', directory: '/opt/actions-runner' },
    job_metadata_access: props.jobMetadataAccess ?? 'blocked',
    job_docker_access: props.jobDockerAccess === 'blocked' ? 'blocked' : undefined,
    wait_for_docker: props.waitForDocker === true ? true : undefined,
    retirement: retires ? { max_age_secs: maxAgeSecs, idle_limit_secs: idleLimitSecs } : undefined,
    environment: Object.keys(environment).length > 0 ? sorted(withSchemes(environment)) : undefined,
    lifecycle: {
      group,
      launch_hook: 'kiln-launch',
      termination_hook: 'kiln-terminate',
      termination_heartbeat_timeout_secs: props.terminationHeartbeatTimeoutSecs ?? 300,
      drain_timeout_secs: props.drainTimeoutSecs ?? 21600,
      failed_boot_grace_secs: props.failedBootGraceSecs ?? 300,
    },
  };
  return ascii(JSON.stringify(document));
}

/** JSON in ASCII, as the Rust side writes it: CloudFormation gives back other characters as `?`. */
function ascii(json: string): string {
  return json.replace(/[\u0080-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
