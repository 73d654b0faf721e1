import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { App, CfnResource, LegacyStackSynthesizer, Stack } from 'aws-cdk-lib';
import { Template } from 'aws-cdk-lib/assertions';
import { CfnInclude } from 'aws-cdk-lib/cloudformation-include';
import { SubnetType, Vpc } from 'aws-cdk-lib/aws-ec2';
import { ManagedPolicy } from 'aws-cdk-lib/aws-iam';
import { Topic } from 'aws-cdk-lib/aws-sns';
import { parse, Scalar, ScalarTag, CollectionTag, YAMLMap, YAMLSeq } from 'yaml';

import { RunnerGroup, RunnerGroupProps, SelfHostedRunnerStack } from '../src';
import { runnerGroupParameters, TEMPLATE } from '../src/runner-group';

const REPOSITORY = join(__dirname, '..', '..', '..', '..');
const OURS = readFileSync(join(REPOSITORY, 'infra', 'fleet.yaml'), 'utf8');
const SUPPLIED = JSON.parse(readFileSync(join(__dirname, '..', '..', 'test', 'supplied.json'), 'utf8')) as Record<
  'least' | 'most',
  { stack: string; parameters: Record<string, string> }
>;

/** CloudFormation's short forms, `!Sub x`, in the long ones, `{"Fn::Sub": x}`. */
function read(text: string): unknown {
  const names = ['Ref', 'Condition', 'GetAtt', 'Sub', 'If', 'Equals', 'Not', 'And', 'Or', 'Base64', 'Select', 'Split', 'Join', 'GetAZs'];
  const long = (name: string, argument: unknown) => {
    const key = name === 'Ref' || name === 'Condition' ? name : `Fn::${name}`;
    return { [key]: name === 'GetAtt' && typeof argument === 'string' ? argument.split('.') : argument };
  };
  // The parser gives nodes for collections, whose tags inside are resolved with toJSON.
  const customTags = names.flatMap((name): (ScalarTag | CollectionTag)[] => [
    { tag: `!${name}`, resolve: (value: string) => long(name, value) },
    { tag: `!${name}`, collection: 'seq', resolve: (value: YAMLSeq | YAMLMap) => tagged(long, name, value) },
  ]);
  return parse(text, { customTags });
}

function tagged(long: (name: string, argument: unknown) => unknown, name: string, value: YAMLSeq | YAMLMap): Scalar {
  const scalar = new Scalar(undefined);
  scalar.toJSON = () => long(name, value.toJSON());
  return scalar;
}

/** `GetAtt` takes its path as a text or as a list. */
function canonical(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value), (key, inner: unknown) =>
    key === 'Fn::GetAtt' && typeof inner === 'string' ? inner.split('.') : inner,
  );
}

/** A stack that holds nothing but what is put into it. */
function plain(name: string): Stack {
  const app = new App({ analyticsReporting: false });
  return new Stack(app, 'Stack', { stackName: name, synthesizer: new LegacyStackSynthesizer() });
}

function props(stack: Stack): RunnerGroupProps {
  const subnets = ['subnet-00000001', 'subnet-00000002'];
  return {
    organization: 'acme',
    fleet: 'linux',
    app: { id: 'Iv23liEXAMPLE0000000' },
    runnerVersion: '2.338.0',
    imageId: 'ami-00000001',
    vpc: Vpc.fromVpcAttributes(stack, 'Vpc', { vpcId: 'vpc-00000001', availabilityZones: ['a', 'b'], privateSubnetIds: subnets }),
    instanceTypes: ['m6i.large'],
    minSize: 1,
    maxSize: 4,
  };
}

/** Numbers and lists as texts, as the command line of CloudFormation has them. */
function texts(parameters: Record<string, unknown>): Record<string, string> {
  return Object.fromEntries(Object.entries(parameters).map(([name, value]) => [name, String(value)]));
}

test('the included template is ours, all of it', () => {
  const stack = plain('kiln-acme-fleet-linux');
  new CfnInclude(stack, 'Template', { templateFile: TEMPLATE });
  assert.deepEqual(canonical(Template.fromStack(stack).toJSON()), canonical(read(OURS)));
});

test('the least props supply what deploy supplies', () => {
  const stack = plain('kiln-acme-fleet-linux');
  assert.deepEqual(texts(runnerGroupParameters(props(stack), SUPPLIED.least.stack)), SUPPLIED.least.parameters);
});

test('all props together supply what deploy supplies', () => {
  const stack = plain('kiln-acme-inc-fleet-once');
  const all: RunnerGroupProps = {
    ...props(stack),
    organization: 'Acme-Inc',
    fleet: 'once',
    app: { id: '123456', installationId: 12345678 },
    github: { url: 'https://ghes.example:8443' },
    labels: ['linux-arm64', 'single-use'],
    runnerGroup: 'Größe XL',
    registration: 'ephemeral',
    instanceTypes: ['m7g.large', 'm6g.large', 'c7g.large'],
    minSize: 0,
    maxSize: 200,
    spot: { onDemandBase: 2, onDemandPercent: 10, strategy: 'capacity-optimized', capacityRebalance: true },
    volume: { gib: 200, iops: 6000, throughputMibps: 500 },
    egressPorts: [22],
    sessionManager: true,
    keyStore: 'secrets-manager',
    terminationHeartbeatTimeoutSecs: 600,
    drainTimeoutSecs: 3600,
    failedBootGraceSecs: 60,
    maxAgeSecs: 604800,
    idleLimitSecs: 1800,
    jobMetadataAccess: 'allowed',
    waitForDocker: true,
    environment: { https_proxy: 'http://proxy.example:3128', LANG: 'C.UTF-8' },
    instanceTags: { team: 'ci', 'cost-center': '42' },
    alarmTopic: Topic.fromTopicArn(stack, 'Topic', 'arn:aws:sns:eu-central-1:123456789012:alarms'),
    permissionsBoundary: ManagedPolicy.fromManagedPolicyArn(stack, 'Boundary', 'arn:aws:iam::123456789012:policy/kiln-acme-inc-boundary'),
  };
  assert.deepEqual(texts(runnerGroupParameters(all, SUPPLIED.most.stack)), SUPPLIED.most.parameters);
});

test('a stack of runners has every resource of the template, its parameters put in', () => {
  const app = new App({ analyticsReporting: false });
  const network = new Stack(app, 'Network', { env: { account: '123456789012', region: 'eu-central-1' } });
  const vpc = new Vpc(network, 'Vpc', { maxAzs: 2 });
  const stack = new SelfHostedRunnerStack(app, 'Linux', {
    ...props(plain('unused')),
    vpc,
    subnets: { subnetType: SubnetType.PRIVATE_WITH_EGRESS },
    stack: { env: { account: '123456789012', region: 'eu-central-1' } },
  });
  assert.equal(stack.stackName, SUPPLIED.least.stack);
  assert.equal(stack.runners.groupName, SUPPLIED.least.stack);
  const template = Template.fromStack(stack).toJSON() as { Parameters?: object; Resources: Record<string, { Type: string }> };
  const ours = read(OURS) as { Parameters: object; Resources: Record<string, { Type: string }> };
  const kinds = (resources: Record<string, { Type: string }>) =>
    Object.entries(resources).map(([id, { Type }]) => `${id} ${Type}`).sort();
  assert.deepEqual(kinds(template.Resources), kinds(ours.Resources));
  const left = Object.keys(template.Parameters ?? {}).filter((name) => name in ours.Parameters);
  assert.deepEqual(left, []);
  const referred = JSON.stringify(template).match(/"Ref":"(\w+)"/g) ?? [];
  assert.deepEqual(referred.filter((ref) => Object.keys(ours.Parameters).some((name) => ref === `"Ref":"${name}"`)), []);
});

test('what CloudFormation could not check any more is checked here', () => {
  const wrong: [Partial<RunnerGroupProps>, RegExp][] = [
    [{ minSize: 5 }, /minSize is 5, more than maxSize/],
    [{ instanceTypes: ['a.b', 'a.c', 'a.d', 'a.e', 'a.f', 'a.g'] }, /InstanceType has 6 values: the template takes 5/],
    [{ environment: { LD_PRELOAD: '/tmp/x.so' } }, /what code programs load/],
    [{ volume: { gib: 8 } }, /VolumeGib is 8: a whole number from 30 to 65536/],
    [{ volume: { iops: 20000 } }, /at most 500 IOPS a GiB/],
    [{ volume: { throughputMibps: 751 } }, /4 IOPS for each MiB/],
    [{ jobDockerAccess: 'blocked', waitForDocker: true }, /jobs may not use docker/],
    [{ terminationHeartbeatTimeoutSecs: 10, drainTimeoutSecs: 600 }, /TerminationHeartbeatSecs is 10: a whole number from 30 to 7200/],
    [{ spot: { onDemandPercent: 101 } }, /OnDemandPercent is 101/],
    [{ egressPorts: [1, 2, 3, 4, 5] }, /EgressPort has 5 values/],
    [{ environment: { LONG: 'x'.repeat(4096) } }, /BootConfig is .*: at most 4096 bytes/],
  ];
  for (const [part, message] of wrong) {
    const stack = plain('kiln-acme-fleet-linux');
    assert.throws(() => new RunnerGroup(stack, 'Runners', { ...props(stack), ...part }), message);
  }
});

interface Vector {
  readonly what: string;
  readonly accepted: boolean;
  readonly fleet?: Readonly<Record<string, unknown>>;
  readonly tags?: Readonly<Record<string, string>>;
  readonly organization?: string;
  readonly client_id?: string;
  readonly runner_version?: string;
  readonly github?: { readonly url: string };
}

/** The fleet's keys that are named otherwise here. */
const NAMES: Readonly<Record<string, string>> = { min: 'minSize', max: 'maxSize' };

test('what kiln.toml takes is taken, and what it refuses is refused', () => {
  const vectors = JSON.parse(readFileSync(join(__dirname, '..', '..', 'test', 'vectors.json'), 'utf8')) as Vector[];
  for (const vector of vectors) {
    const stack = plain('kiln-acme-fleet-linux');
    const camel = (key: string) => NAMES[key] ?? key.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());
    const fleet = Object.fromEntries(Object.entries(vector.fleet ?? {}).map(([key, value]) => [camel(key), value]));
    const least = props(stack);
    const all: RunnerGroupProps = {
      ...least,
      ...fleet,
      organization: vector.organization ?? least.organization,
      app: vector.client_id === undefined ? least.app : { id: vector.client_id },
      runnerVersion: vector.runner_version ?? least.runnerVersion,
      ...(vector.github === undefined ? {} : { github: vector.github }),
      ...(vector.tags === undefined ? {} : { instanceTags: vector.tags }),
    };
    const synthesize = () => new RunnerGroup(stack, 'Runners', all);
    if (vector.accepted) {
      assert.doesNotThrow(synthesize, vector.what);
    } else {
      assert.throws(synthesize, /^Error: kiln: /, vector.what);
    }
  }
});

test('the security group can be let in elsewhere', () => {
  const stack = plain('kiln-acme-fleet-linux');
  const { securityGroup } = new RunnerGroup(stack, 'Runners', props(stack));
  new CfnResource(stack, 'Elsewhere', { type: 'AWS::CloudFormation::WaitConditionHandle', properties: { Group: securityGroup.securityGroupId } });
  const { Resources } = Template.fromStack(stack).toJSON() as { Resources: { Elsewhere: { Properties: unknown } } };
  assert.deepEqual(Resources.Elsewhere.Properties, { Group: { 'Fn::GetAtt': ['SecurityGroup', 'GroupId'] } });
});

test('the example is synthesized without a word', () => {
  const directory = mkdtempSync(join(tmpdir(), 'kiln-cdk-'));
  try {
    const env = { PATH: process.env['PATH'], CDK_OUTDIR: directory };
    const ran = spawnSync(process.execPath, [join(__dirname, '..', 'example', 'app.js')], { env, encoding: 'utf8' });
    assert.deepEqual({ status: ran.status, said: ran.stderr + ran.stdout }, { status: 0, said: '' });
    assert.ok(readdirSync(directory).includes('Linux.template.json'));
  } finally {
    rmSync(directory, { recursive: true });
  }
});
