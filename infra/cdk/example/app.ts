import { App, Stack } from 'aws-cdk-lib';
import { Vpc } from 'aws-cdk-lib/aws-ec2';
import { SelfHostedRunnerStack } from '../src';

const app = new App();
const network = new Stack(app, 'Network');
const vpc = new Vpc(network, 'Vpc', { maxAzs: 2, natGateways: 1 });
new SelfHostedRunnerStack(app, 'Linux', {
  organization: 'acme', fleet: 'linux', app: { id: 'Iv23liEXAMPLE0000000' }, runnerVersion: '2.338.0', labels: ['linux-x64'],
  imageId: app.node.tryGetContext('ami') ?? 'ami-0123456789abcdef0', instanceTypes: ['m6i.large'], minSize: 1, maxSize: 4, vpc,
});
