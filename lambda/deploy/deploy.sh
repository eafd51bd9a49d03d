#!/usr/bin/env bash
# Checks, builds and deploys the signer's stack. "make deploy" and "make package" call it.
#
#   lambda/deploy/deploy.sh deploy     check, build, upload, deploy
#   lambda/deploy/deploy.sh package    check, build, upload, print the packaged template's address
#
# Variables: STACK (default hallmark), AWS_REGION, ALARM_EMAIL, BUCKET (receives the packages),
# and PARAMETERS, further parameters of the template, quoted as in a shell:
#
#   make deploy PARAMETERS="SweepRate='rate(30 minutes)' LogRetentionDays=90"
#
# On a terminal it asks for the region and the address if they are missing. An existing
# stack keeps each parameter that is not given. It runs with the bash 3.2 of macOS.
set -euo pipefail
cd "$(dirname "$0")/../.."
export AWS_PAGER="" # the AWS CLI would wait in a pager

say() { printf 'deploy: %s\n' "$*" >&2; }
fail() {
  say "$@"
  exit 1
}

# ask NAME QUESTION sets a variable that is empty, if somebody is there to answer.
ask() {
  [ -z "${!1:-}" ] && [ -t 0 ] || return 0
  read -r -p "$2: " "${1?}"
}

# Regions without function URLs (AWS Lambda Developer Guide, "Creating and managing Lambda
# function URLs"; AWS GovCloud (US) User Guide, "AWS Lambda"; Getting Started with AWS in
# China, "AWS Lambda"). If AWS has added them to a region since, remove it here.
no_function_urls=" ap-east-2 ap-south-2 ap-southeast-4 ap-southeast-5 ap-southeast-6 ap-southeast-7 ca-west-1 cn-north-1 cn-northwest-1 eu-central-2 eu-south-2 il-central-1 me-central-1 us-gov-east-1 us-gov-west-1 "

check_tools() {
  command -v go >/dev/null || fail "Go is missing: install Go 1.26 or later from https://go.dev/dl"
  command -v aws >/dev/null || fail "the AWS CLI is missing: install it from https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html"
  # Both package and deploy with the same arguments; SAM also builds.
  if command -v sam >/dev/null; then
    tool=(sam)
  else
    tool=(aws cloudformation)
  fi
}

# check_settings reads deployment.yaml, its policy and every other file it names.
check_settings() {
  [ -f deployment/deployment.yaml ] || fail "deployment/deployment.yaml is missing: write it as docs/quickstart.md shows"
  audience=$(go run ./lambda/operator deployment check --print audience deployment/deployment.yaml) ||
    fail "correct deployment/deployment.yaml, then try again"
}

# has_other_entry succeeds if machines do not call a function URL: as the parameter says, or
# else as the stack is.
has_other_entry() {
  local entry
  case " ${PARAMETERS:-} " in
  *" Entry=private-api "* | *" Entry=invoke "*) return 0 ;;
  *" Entry="*) return 1 ;;
  esac
  entry=$(stack "Parameters[?ParameterKey=='Entry'].ParameterValue | [0]") || return 1
  [ "$entry" = private-api ] || [ "$entry" = invoke ]
}

check_account() {
  : "${AWS_REGION:=${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}"
  ask AWS_REGION "Region to deploy in"
  [ -n "$AWS_REGION" ] || fail "no region: set AWS_REGION"
  export AWS_REGION AWS_DEFAULT_REGION=$AWS_REGION
  case $no_function_urls in
  *" $AWS_REGION "*) has_other_entry ||
    fail "Lambda has no function URLs in $AWS_REGION, and machines call one: deploy in another region, or with another Entry (docs/networks.md). Instances may run in any region that deployment.yaml lists" ;;
  esac
  account=$(aws sts get-caller-identity --query Account --output text) ||
    fail "AWS rejected your credentials: run 'aws configure' or 'aws sso login'"
}

# stack QUERY prints a property of the stack, and nothing if there is no stack.
stack() {
  local answer
  if answer=$(aws cloudformation describe-stacks --stack-name "$STACK" --output text --query "Stacks[0].$1" 2>&1); then
    [ "$answer" = None ] || printf '%s\n' "$answer"
  elif [[ $answer != *"does not exist"* ]]; then
    fail "cannot describe the stack $STACK: $answer"
  fi
}

# check_stack sets first if there is no stack yet, and failed if a first attempt must be
# deleted before the next one.
check_stack() {
  local status
  first="" failed=""
  status=$(stack StackStatus)
  case $status in
  "" | REVIEW_IN_PROGRESS) # none, or CloudFormation rejected the template before it began
    first=yes
    check_leftovers
    ;;
  ROLLBACK_COMPLETE) first=yes failed=yes ;;
  CREATE_COMPLETE | UPDATE_COMPLETE | UPDATE_ROLLBACK_COMPLETE | IMPORT_COMPLETE | IMPORT_ROLLBACK_COMPLETE) ;;
  *_IN_PROGRESS) fail "the stack $STACK is in state $status: wait until CloudFormation has finished" ;;
  UPDATE_ROLLBACK_FAILED) fail "the stack $STACK is in state $status: run 'aws cloudformation continue-update-rollback --stack-name $STACK' first" ;;
  *) fail "the stack $STACK is in state $status: delete it with 'aws cloudformation delete-stack --stack-name $STACK', then try again" ;;
  esac
}

# A deleted stack leaves its policy parameter, whose name a new stack of that name needs.
check_leftovers() {
  local answer name=/hallmark/$STACK/policy
  case " ${PARAMETERS:-} " in *" PolicyIn=package "*) return ;; esac
  if answer=$(aws ssm get-parameter --name "$name" --query Parameter.Name --output text 2>&1); then
    fail "the parameter $name is left from a deleted stack. Keep a copy of the policy and delete it" \
      "('aws ssm delete-parameter --name $name'), or set STACK to another name." \
      "To keep the machines of that stack enrolled, pass its ledger: PARAMETERS=LedgerTableArn=ARN"
  elif [[ $answer != *ParameterNotFound* ]]; then
    fail "cannot read the parameter $name: $answer"
  fi
}

# Lambda keeps 100 of an account's concurrency unreserved, and new accounts have 10 in all
# (AWS Lambda Developer Guide, "Configuring reserved concurrency").
choose_concurrency() {
  local limits limit free enroll fleet
  limits=$(aws lambda get-account-settings --output text --query 'AccountLimit.[ConcurrentExecutions,UnreservedConcurrentExecutions]') ||
    fail "cannot read the account's concurrency limit: your credentials need lambda:GetAccountSettings"
  read -r limit free <<<"$limits"
  parameters+=("AlarmConcurrency=$((limit * 4 / 5))")
  enroll=$(stack "Parameters[?ParameterKey=='ReservedConcurrency'].ParameterValue | [0]")
  fleet=$(stack "Parameters[?ParameterKey=='FleetReservedConcurrency'].ParameterValue | [0]")
  if [ -z "$first" ] && [ $((${enroll:-0} + ${fleet:-0})) -gt 0 ]; then
    return # the stack keeps what it has reserved
  fi
  if [ $((free - 20 - 5)) -ge 100 ]; then
    parameters+=(ReservedConcurrency=20 FleetReservedConcurrency=5)
    return
  fi
  parameters+=(ReservedConcurrency=0 FleetReservedConcurrency=0)
  say "warning: nothing is reserved. Of this account's $limit concurrent executions $free are unreserved, and Lambda keeps 100 unreserved."
  say "warning: a flood on the URL can delay off-boarding; ConcurrencyAlarm reports it. Request 1,000 concurrent executions in Service Quotas, then deploy again."
}

# add_given adds the parameters in PARAMETERS, which override the chosen ones.
add_given() {
  local list parameter
  [ -n "${PARAMETERS:-}" ] || return 0
  list=$(xargs -n 1 printf '%s\n' <<<"$PARAMETERS") || fail "PARAMETERS: quote values as in a shell: $PARAMETERS"
  while IFS= read -r parameter; do
    [[ $parameter =~ ^[A-Za-z]+= ]] || fail "PARAMETERS: want NAME=VALUE, not $parameter"
    parameters+=("$parameter")
  done <<<"$list"
}

ask_for_address() {
  [ -z "$first" ] || ask ALARM_EMAIL "E-mail address for alarms (empty for none)"
  [ -n "${ALARM_EMAIL:-}" ] || return 0
  [[ $ALARM_EMAIL =~ ^[^@\ ]+@[^@\ ]+$ ]] || fail "$ALARM_EMAIL is not an e-mail address"
  parameters+=("AlarmEmail=$ALARM_EMAIL")
}

# copy_sources copies the commit that is checked out, and the deployment. SAM copies the
# folder it builds once for each function, so it must hold nothing else.
copy_sources() {
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/source"
  if [ -e .git ]; then
    git diff --quiet HEAD -- || say "warning: uncommitted changes are not deployed"
    git archive HEAD | tar -xf - -C "$work/source"
  else # an unpacked release
    tar -cf - --exclude ./bin --exclude ./dist --exclude ./.aws-sam --exclude './packer-plugin/programs/hallmark-*' . | tar -xf - -C "$work/source"
  fi
  rm -rf "$work/source/deployment"
  cp -R deployment "$work/source/"
}

# build makes each function's package, and in $work/build/template.yaml the template that
# names them.
build() {
  local function
  copy_sources
  if [ "${tool[0]}" = sam ]; then
    (cd "$work/source" && sam build --build-dir "$work/build") >&2
    return
  fi
  for function in EnrollFunction FleetFunction; do
    mkdir -p "$work/build/$function"
    make -C "$work/source" "build-$function" ARTIFACTS_DIR="$work/build/$function" >&2
  done
  # Each function's CodeUri names its own package.
  awk '/^  [A-Za-z]+:/ { name = $1; sub(":", "", name) } /^      CodeUri: \.$/ { sub(/\.$/, name) } { print }' \
    "$work/source/template.yaml" >"$work/build/template.yaml"
}

upload() {
  BUCKET=${BUCKET:-hallmark-artifacts-$account-$AWS_REGION}
  # Somebody else could have taken the name, to receive the packages.
  if ! aws s3api head-bucket --bucket "$BUCKET" --expected-bucket-owner "$account" >/dev/null 2>&1; then
    say "creating the bucket $BUCKET for the packages"
    aws s3 mb "s3://$BUCKET" >&2 || fail "cannot create the bucket $BUCKET: set BUCKET to one of your own"
    aws s3api put-public-access-block --bucket "$BUCKET" --expected-bucket-owner "$account" --public-access-block-configuration \
      BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
  fi
  "${tool[@]}" package --template-file "$work/build/template.yaml" --s3-bucket "$BUCKET" --s3-prefix "$STACK" \
    --output-template-file "$work/packaged.yaml" >&2
}

# create_or_update NAME=VALUE… deploys the uploaded template.
create_or_update() {
  local parameter value quoted=""
  if [ "${tool[0]}" = sam ]; then # SAM takes one text, with quoted values
    for parameter in "$@"; do
      value=${parameter#*=}
      quoted+=" ${parameter%%=*}=\"${value//\"/\\\"}\""
    done
    set -- "${quoted# }"
  fi
  "${tool[@]}" deploy --stack-name "$STACK" --template-file "$work/packaged.yaml" --s3-bucket "$BUCKET" --s3-prefix "$STACK" \
    --capabilities CAPABILITY_IAM CAPABILITY_AUTO_EXPAND --no-fail-on-empty-changeset --parameter-overrides "$@" >&2 || explain_failure
}

explain_failure() {
  say "the deployment failed. The newest failures come first:"
  aws cloudformation describe-stack-events --stack-name "$STACK" --no-paginate --output text --query \
    "StackEvents[?ends_with(ResourceStatus, '_FAILED') && ResourceStatusReason != null] | [?!contains(ResourceStatusReason, 'cancelled')].[LogicalResourceId, ResourceStatusReason] | [:10]" >&2 ||
    say "cannot read the stack's events"
  exit 1
}

# replace_failed deletes what a failed first attempt left. There is no other way to try again.
replace_failed() {
  [ -n "$failed" ] || return 0
  say "the first attempt failed and was rolled back: deleting the empty stack $STACK"
  aws cloudformation delete-stack --stack-name "$STACK"
  aws cloudformation wait stack-delete-complete --stack-name "$STACK"
}

deploy() {
  parameters=("Audience=$audience")
  check_stack
  choose_concurrency
  ask_for_address
  add_given
  build
  upload
  replace_failed
  # CloudFormation could not roll back a protected table. An existing stack needs no rollback
  # of its table.
  [ -z "$first" ] || create_or_update ProtectLedger=no "${parameters[@]}"
  create_or_update ProtectLedger=yes "${parameters[@]}"
  aws cloudformation describe-stacks --stack-name "$STACK" --query 'Stacks[0].Outputs[].[OutputKey,OutputValue]' --output text
  say "deployed. Put TeleportTokenArn and FleetTokenArn into templates/teleport/token.yaml (docs/quickstart.md, step 4)."
}

# package prints an address that no other version has: Terraform compares addresses. The AWS CLI
# knows the addresses of every partition; its signature is not printed.
package() {
  local name address
  build
  upload
  name=$STACK/template-$(cksum <"$work/packaged.yaml" | tr ' ' -).yaml
  aws s3 cp "$work/packaged.yaml" "s3://$BUCKET/$name" >&2
  address=$(aws s3 presign "s3://$BUCKET/$name") || fail "the AWS CLI cannot tell the address of s3://$BUCKET/$name"
  printf '%s\n' "${address%%\?*}"
}

: "${STACK:=hallmark}"
case ${1:-} in
deploy | package)
  check_tools
  check_settings
  check_account
  "$1"
  ;;
*) fail "usage: lambda/deploy/deploy.sh deploy | package" ;;
esac
