import { Stack, StackProps } from 'aws-cdk-lib';
import { Construct } from 'constructs';

import { stackName } from './boot-config';
import { RunnerGroup, RunnerGroupProps } from './runner-group';

/** A fleet and the stack it lives in. */
export interface SelfHostedRunnerStackProps extends RunnerGroupProps {
  /** Account, region, and what else CDK wants of a stack. */
  readonly stack?: Omit<StackProps, 'stackName'>;
}

/** One fleet as a stack of its own, named as `cargo xtask deploy` names it. */
export class SelfHostedRunnerStack extends Stack {
  /** The fleet. */
  public readonly runners: RunnerGroup;

  public constructor(scope: Construct, id: string, props: SelfHostedRunnerStackProps) {
    super(scope, id, { ...props.stack, stackName: stackName(props.organization, props.fleet) });
    this.runners = new RunnerGroup(this, 'Runners', props);
  }
}
