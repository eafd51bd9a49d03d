# A golden image of Amazon Linux 2023 whose instances enroll themselves in a
# Teleport cluster at first boot.
#
#   packer build -var-file=my.pkrvars.hcl .
#
# "packer init" finds the hallmark plugin once there is a release. Until then, run:
#
#   packer plugins install github.com/hashicorp/amazon
#   packer plugins install --path bin/packer-plugin-hallmark github.com/hallmark-ssh/hallmark

packer {
  required_version = ">= 1.11.0"
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.3.0"
    }
    hallmark = {
      source  = "github.com/hallmark-ssh/hallmark"
      version = ">= 0.1.0"
    }
  }
}

variable "region" {
  type        = string
  description = "The AWS region to bake in."
}

variable "subnet_id" {
  type        = string
  description = "A private subnet that reaches Systems Manager through NAT or VPC endpoints."
}

variable "signer_url" {
  type        = string
  description = "The signer's function URL: the output SignerUrl of its stack."
}

variable "audience" {
  type        = string
  description = "The signer's audience, for example hallmark.example.com."
}

variable "proxy_address" {
  type        = string
  description = "The Teleport proxy, for example teleport.example.com:443."
}

variable "openssh_ca_pins" {
  type        = list(string)
  description = "Fingerprints of the cluster's OpenSSH CA: tctl auth export --type=openssh | sed 's/^cert-authority //' | ssh-keygen -lf -"
}

source "amazon-ebs" "golden" {
  region        = var.region
  subnet_id     = var.subnet_id
  instance_type = "t4g.small"
  ami_name      = "golden-${formatdate("YYYYMMDD-hhmmss", timestamp())}"

  source_ami_filter {
    owners      = ["amazon"]
    most_recent = true
    filters = {
      name                = "al2023-ami-2023.*-arm64"
      virtualization-type = "hvm"
      root-device-type    = "ebs"
    }
  }

  # Packer does not check the SSH host key of the machine that it bakes. Systems Manager
  # finds the machine by its instance id, over TLS, and needs neither a public address
  # nor an open port.
  communicator  = "ssh"
  ssh_username  = "ec2-user"
  ssh_interface = "session_manager"
  temporary_iam_instance_profile_policy_document {
    Version = "2012-10-17"
    Statement {
      Effect = "Allow"
      Action = [
        "ssm:UpdateInstanceInformation",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
      ]
      Resource = ["*"]
    }
  }

  # Packer's own key would otherwise stay in the image.
  ssh_clear_authorized_keys = true

  # Instances of the image answer only metadata requests with a token.
  imds_support = "v2.0"
  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
  }
}

build {
  sources = ["source.amazon-ebs.golden"]

  # Put the provisioners that install your own software here.

  # Keep this one last: it removes the host keys, and without them sshd accepts no
  # new connections.
  provisioner "hallmark" {
    signer_url      = var.signer_url
    audience        = var.audience
    proxy_address   = var.proxy_address
    openssh_ca_pins = var.openssh_ca_pins
  }
}
