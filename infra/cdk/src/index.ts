export { bootConfig, BootConfigProps, DockerAccess, GitHubApp, GitHubProps, KeyStore, MetadataAccess, Registration } from './boot-config';
export { RunnerGroup, RunnerGroupProps, SpotProps, VolumeProps } from './runner-group';
export { SelfHostedRunnerStack, SelfHostedRunnerStackProps } from './stack';
