import { Token } from 'aws-cdk-lib';
import { parse } from 'yaml';

interface Declared {
  readonly Type: string;
  readonly AllowedValues?: readonly string[];
  readonly MinValue?: number;
  readonly MaxValue?: number;
  readonly MaxLength?: number;
}

/** Says no at synthesis, before anything is deployed. */
export function refuse(message: string): never {
  throw new Error(`kiln: ${message}`);
}

/** The parameters that a template declares: with their values put in, CloudFormation can't check them any more. */
export class Parameters {
  private readonly declared: Readonly<Record<string, Declared>>;

  public constructor(template: string) {
    // CloudFormation's tags are of no concern to parameters.
    const document = parse(template, { logLevel: 'silent' }) as { Parameters?: Record<string, Declared> };
    this.declared = document.Parameters ?? {};
  }

  /** Refuses what CloudFormation would refuse, and what is declared or supplied alone. */
  public check(values: Readonly<Record<string, unknown>>): void {
    for (const name of Object.keys(this.declared)) {
      if (!(name in values)) {
        refuse(`the template's parameter ${name} has no value`);
      }
    }
    for (const [name, value] of Object.entries(values)) {
      const declared = this.declared[name] ?? refuse(`the template has no parameter ${name}`);
      const problem = Token.isUnresolved(value) ? undefined : Parameters.problem(declared, value);
      if (problem !== undefined) {
        refuse(`${name} is ${JSON.stringify(value)}: ${problem}`);
      }
    }
  }

  private static problem(declared: Declared, value: unknown): string | undefined {
    const { AllowedValues, MinValue = 0, MaxValue = Infinity, MaxLength = 4096 } = declared;
    if (AllowedValues !== undefined && !AllowedValues.includes(String(value))) {
      return `one of ${AllowedValues.join(', ')} was expected`;
    }
    if (declared.Type === 'Number') {
      const fits = typeof value === 'number' && Number.isInteger(value) && value >= MinValue && value <= MaxValue;
      return fits ? undefined : `a whole number from ${MinValue} to ${MaxValue} was expected`;
    }
    if (typeof value === 'string' && Buffer.byteLength(value) > MaxLength) {
      return `at most ${MaxLength} bytes were expected`;
    }
    return undefined;
  }
}
