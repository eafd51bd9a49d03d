# The bake of the whole-path tests: the provisioners of a golden image, on a machine
# that runs already.

variable "host" {
  type = string
}

variable "username" {
  type = string
}

variable "private_key_file" {
  type = string
}

variable "proxy_address" {
  type = string
}

variable "proxy_ca_file" {
  type = string
}

variable "openssh_ca_pin" {
  type = string
}

variable "signer_url" {
  type = string
}

variable "signer_function" {
  type = string
}

variable "signer_auth" {
  type = string
}

variable "signer_ca_file" {
  type = string
}

variable "audience" {
  type = string
}

variable "proxy_sources" {
  type    = list(string)
  default = null
}

variable "clean" {
  type = list(string)
}

source "null" "machine" {
  ssh_host             = var.host
  ssh_username         = var.username
  ssh_private_key_file = var.private_key_file
  ssh_timeout          = "1m"
}

build {
  sources = ["source.null.machine"]

  provisioner "shell" {
    inline = var.clean
  }

  provisioner "hallmark" {
    signer_url      = var.signer_url
    signer_function = var.signer_function
    signer_auth     = var.signer_auth
    signer_ca_file  = var.signer_ca_file
    audience        = var.audience
    proxy_address   = var.proxy_address
    proxy_ca_file   = var.proxy_ca_file
    openssh_ca_pins = [var.openssh_ca_pin]
    proxy_sources   = var.proxy_sources
  }
}
