// Evaluates IAM requests, one JSON object a line on standard input, and prints one answer a
// line. A request has the members of iam-simulate's Simulation.
import { createInterface } from 'node:readline'
import { runSimulation } from '@cloud-copilot/iam-simulate'

for await (const line of createInterface({ input: process.stdin })) {
  const { request, identityPolicies = [], resourcePolicy } = JSON.parse(line)
  const response = await runSimulation(
    {
      request,
      identityPolicies: identityPolicies.map((policy, n) => ({ name: String(n), policy })),
      resourcePolicy,
      serviceControlPolicies: [],
      resourceControlPolicies: [],
    },
    { simulationMode: 'Strict' },
  )
  const answer = { result: response.overallResult ?? 'error' }
  if (response.errors) answer.errors = response.errors
  const one = response.result ?? response.results?.[0]
  if (one?.ignoredContextKeys?.length) answer.ignored = one.ignoredContextKeys
  console.log(JSON.stringify(answer))
}
