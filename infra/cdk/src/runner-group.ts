import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { Stack, Validations } from 'aws-cdk-lib';
import { CfnInclude } from 'aws-cdk-lib/cloudformation-include';
import { ISecurityGroup, IVpc, SecurityGroup, SubnetSelection } from 'aws-cdk-lib/aws-ec2';
import { IManagedPolicy } from 'aws-cdk-lib/aws-iam';
import { ITopic } from 'aws-cdk-lib/aws-sns';
import { Construct } from 'constructs';

import { addresses, bootConfig, BootConfigProps, keyAlias, keySecret } from './boot-config';
import { check, namesAProxy, withScheme } from './checks';
import { Parameters, refuse } from './parameters';

/** The template, as it stands in `infra/fleet.yaml`; copied beside the code when that is built. */
export const TEMPLATE = join(__dirname, '..', 'fleet.yaml');

/** Spot capacity beside on-demand. */
export interface SpotProps {
  /** So many instances are on-demand before any is spot. @default 0 */
  readonly onDemandBase?: number;
  /** Of the instances beyond the base, so many in a hundred are on-demand. @default 0 */
  readonly onDemandPercent?: number;
  /** Which spot pools are preferred. @default 'price-capacity-optimized' */
  readonly strategy?: 'price-capacity-optimized' | 'capacity-optimized' | 'capacity-optimized-prioritized';
  /** Does Auto Scaling replace an instance at risk by itself? Instances ask for it anyway. @default false */
  readonly capacityRebalance?: boolean;
}

/** An instance's root volume: gp3, encrypted. */
export interface VolumeProps {
  /** Its size in GiB, at least the image's own 30. @default 30 */
  readonly gib?: number;
  /** I/O operations a second; at most 500 for each GiB. @default 3000 */
  readonly iops?: number;
  /** MiB a second; at most one for each four IOPS. @default 125 */
  readonly throughputMibps?: number;
}

/** A fleet: one Auto Scaling group of alike runners. */
export interface RunnerGroupProps extends BootConfigProps {
  /** The AMI, as baked and recorded by `cargo xtask ami`. */
  readonly imageId: string;
  /** Where instances live. */
  readonly vpc: IVpc;
  /** Subnets of that VPC with a way out to the internet. @default private ones with egress */
  readonly subnets?: SubnetSelection;
  /** In order of preference, one to five, all of the image's architecture. */
  readonly instanceTypes: readonly string[];
  /** Auto Scaling keeps at least so many instances. */
  readonly minSize: number;
  /** Auto Scaling has at most so many instances. */
  readonly maxSize: number;
  /** Spot capacity. @default on-demand only */
  readonly spot?: SpotProps;
  /** The root volume. @default 30 GiB with what gp3 gives at no extra charge */
  readonly volume?: VolumeProps;
  /** TCP ports that runners reach beside 443, GitHub's own and those of proxies; at most four in all. @default none */
  readonly egressPorts?: readonly number[];
  /** May people open a shell by AWS Systems Manager's Session Manager? @default false */
  readonly sessionManager?: boolean;
  /** A boundary for the instances' role. @default none */
  readonly permissionsBoundary?: IManagedPolicy;
  /** Told of too few instances in service, of failed launches and instance refreshes. @default nobody */
  readonly alarmTopic?: ITopic;
  /** Tags of instances and their volumes, ten at most. CDK's own `Tags` do not reach volumes. @default none */
  readonly instanceTags?: Readonly<Record<string, string>>;
}

/** How long an instance may take to register, as in `crates/operations/src/fleet_stack.rs`. */
const LAUNCH_TIMEOUT_SECS = 600;

/** A fleet's template, included whole. One a stack: its names are made of the stack's. */
export class RunnerGroup extends Construct {
  /** The template's resources, for whoever has to reach one. */
  public readonly template: CfnInclude;
  /** The Auto Scaling group's name. */
  public readonly groupName: string;
  /** The runners' security group, to be let in elsewhere. */
  public readonly securityGroup: ISecurityGroup;

  public constructor(scope: Construct, id: string, props: RunnerGroupProps) {
    super(scope, id);
    const stack = Stack.of(this);
    this.groupName = stack.stackName;
    const parameters = runnerGroupParameters(props, this.groupName);
    new Parameters(readFileSync(TEMPLATE, 'utf8')).check(parameters);
    this.template = new CfnInclude(this, 'Template', { templateFile: TEMPLATE, parameters });
    // The template by itself, with no parameter put in, is checked for the same rules by cfn-lint.
    Validations.of(stack).acknowledge(
      { id: 'CloudFormation-Validate::W1028', reason: 'with the parameters put in, one branch of each `Fn::If` is never taken' },
      { id: 'CloudFormation-Validate::W8003', reason: 'with the parameters put in, every condition is decided' },
      { id: 'CloudFormation-Validate::W9053', reason: 'as above: those that do not hold are all alike' },
      { id: 'CloudFormation-Validate::F3033', reason: 'what has an empty name is under a condition that does not hold' },
    );
    const group = this.template.getResource('SecurityGroup');
    this.securityGroup = SecurityGroup.fromSecurityGroupId(this, 'SecurityGroup', group.getAtt('GroupId').toString());
  }
}

/** The ports beside 443 that the runners reach. */
function egressPorts(props: RunnerGroupProps): number[] {
  const proxies = Object.entries(props.environment ?? {}).filter(([name]) => namesAProxy(name));
  const reached = [...Object.values(addresses(props.github)), ...proxies.map(([, address]) => withScheme(address))];
  const ports = reached.flatMap((address) => {
    if (!URL.canParse(address)) {
      return [];
    }
    const { port, protocol } = new URL(address);
    return port !== '' ? [Number(port)] : protocol === 'http:' ? [80] : [];
  });
  const all = new Set([...ports, ...(props.egressPorts ?? [])]);
  all.delete(443);
  return [...all].sort((one, other) => one - other);
}

function numbered(name: string, count: number, values: readonly string[]): Record<string, string> {
  if (values.length > count) {
    refuse(`${name} has ${values.length} values: the template takes ${count}`);
  }
  const names = Array.from({ length: count }, (_, index) => `${name}${index + 1}`);
  return Object.fromEntries(names.map((parameter, index) => [parameter, values[index] ?? '']));
}

/** The template's parameters: what `crates/operations/src/fleet_stack.rs` supplies, for CDK. */
export function runnerGroupParameters(props: RunnerGroupProps, group: string): Record<string, unknown> {
  const { spot, volume = {}, instanceTags = {} } = props;
  check(props);
  if (props.minSize > props.maxSize) {
    refuse(`minSize is ${props.minSize}, more than maxSize, ${props.maxSize}`);
  }
  const { gib = 30, iops = 3000, throughputMibps = 125 } = volume;
  if (iops > gib * 500 || throughputMibps > iops / 4) {
    refuse(`a gp3 volume of ${gib} GiB with ${iops} IOPS and ${throughputMibps} MiB/s: at most 500 IOPS a GiB, and 4 IOPS for each MiB/s`);
  }
  if (props.jobDockerAccess === 'blocked' && props.waitForDocker === true) {
    refuse('waitForDocker is true: jobs may not use docker');
  }
  const tags = Object.entries(instanceTags).sort(([one], [other]) => (one < other ? -1 : 1));
  const byKms = (props.keyStore ?? 'kms') === 'kms';
  return {
    AmiId: props.imageId,
    BootConfig: bootConfig(props, group),
    MinSize: props.minSize,
    MaxSize: props.maxSize,
    OnDemandBase: spot?.onDemandBase ?? 0,
    OnDemandPercent: spot === undefined ? 100 : (spot.onDemandPercent ?? 0),
    SpotStrategy: spot?.strategy ?? 'price-capacity-optimized',
    CapacityRebalance: String(spot?.capacityRebalance ?? false),
    VolumeGib: gib,
    VolumeIops: iops,
    VolumeThroughputMibps: throughputMibps,
    VpcId: props.vpc.vpcId,
    SubnetIds: props.vpc.selectSubnets(props.subnets).subnetIds,
    KeyAlias: byKms ? keyAlias(props.organization) : '',
    SecretName: byKms ? '' : keySecret(props.organization),
    SessionManager: String(props.sessionManager ?? false),
    PermissionsBoundary: props.permissionsBoundary?.managedPolicyArn ?? '',
    AlarmTopic: props.alarmTopic?.topicArn ?? '',
    TerminationHeartbeatSecs: props.terminationHeartbeatTimeoutSecs ?? 300,
    LaunchTimeoutSecs: LAUNCH_TIMEOUT_SECS,
    ShortName: '',
    // Without Kiln's own rollout the group follows the newest version of the launch template.
    ServingLaunchTemplateVersion: '',
    ...numbered('InstanceType', 5, props.instanceTypes),
    ...numbered('EgressPort', 4, egressPorts(props).map(String)),
    ...numbered('TagKey', 10, tags.map(([key]) => key)),
    ...numbered('TagValue', 10, tags.map(([, value]) => value)),
  };
}
