package moto

import (
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
)

// EC2 changes what an account has in moto's EC2, as its owners do. It replaces AWS's SDK for EC2,
// whose 700 actions take more than a minute to compile. All fields are required.
type EC2 struct {
	URL         string
	Region      ec2ref.Region
	Credentials aws.CredentialsProvider
}

// InstanceType is the type of all instances.
const InstanceType = "t3.micro"

// Launch describes an instance to run. Only the image is required.
type Launch struct {
	Image, Subnet, Address string
	Tags                   map[string]string
	// HopLimit is that of the metadata service. If it is 0, the limit is 1.
	HopLimit int
}

// answer is what is read from any answer
// (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/OperationList-query.html).
type answer struct {
	Instances []string `xml:"instancesSet>item>instanceId"`
	Images    []string `xml:"imagesSet>item>imageId"`
	Zones     []string `xml:"availabilityZoneInfo>item>zoneName"`
	Image     string   `xml:"imageId"`
	VPC       string   `xml:"vpc>vpcId"`
	Subnet    string   `xml:"subnet>subnetId"`
}

func (e EC2) call(ctx context.Context, action string, parameters url.Values) (a answer, err error) {
	parameters.Set("Action", action)
	parameters.Set("Version", "2016-11-15")
	// The first call makes moto load its EC2, which takes long on a busy machine.
	client := awscall.Client{HTTP: http.DefaultClient, Now: time.Now, Timeout: 5 * time.Minute}
	status, body, err := client.Send(ctx, e.Credentials, awscall.Request{
		Service: "ec2", Region: e.Region, Endpoint: e.URL, ContentType: "application/x-www-form-urlencoded",
		Body: []byte(parameters.Encode()), MaxBytes: 8 << 20,
	})
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %.500s", status, body)
	}
	if err == nil {
		err = xml.Unmarshal(body, &a)
	}
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", action, err)
	}
	return a, nil
}

// Run runs an instance and returns its id. Its metadata service requires session tokens.
func (e EC2) Run(ctx context.Context, l Launch) (string, error) {
	parameters := url.Values{"ImageId": {l.Image}, "InstanceType": {InstanceType}, "MinCount": {"1"}, "MaxCount": {"1"}}
	parameters.Set("MetadataOptions.HttpTokens", "required")
	parameters.Set("MetadataOptions.HttpPutResponseHopLimit", strconv.Itoa(max(l.HopLimit, 1)))
	for name, value := range map[string]string{"SubnetId": l.Subnet, "PrivateIpAddress": l.Address} {
		if value != "" {
			parameters.Set(name, value)
		}
	}
	n := 0
	for key, value := range l.Tags {
		n++
		parameters.Set("TagSpecification.1.ResourceType", "instance")
		parameters.Set("TagSpecification.1.Tag."+strconv.Itoa(n)+".Key", key)
		parameters.Set("TagSpecification.1.Tag."+strconv.Itoa(n)+".Value", value)
	}
	a, err := e.call(ctx, "RunInstances", parameters)
	if err == nil && len(a.Instances) != 1 {
		err = fmt.Errorf("RunInstances ran %d instances instead of 1", len(a.Instances))
	}
	if err != nil {
		return "", err
	}
	return a.Instances[0], nil
}

// Stop stops an instance.
func (e EC2) Stop(ctx context.Context, id string) error {
	_, err := e.call(ctx, "StopInstances", url.Values{"InstanceId.1": {id}})
	return err
}

// Terminate terminates an instance.
func (e EC2) Terminate(ctx context.Context, id string) error {
	_, err := e.call(ctx, "TerminateInstances", url.Values{"InstanceId.1": {id}})
	return err
}

// Tag adds a tag to a resource, or changes its value.
func (e EC2) Tag(ctx context.Context, id, key, value string) error {
	_, err := e.call(ctx, "CreateTags", url.Values{"ResourceId.1": {id}, "Tag.1.Key": {key}, "Tag.1.Value": {value}})
	return err
}

// Untag removes a tag from a resource.
func (e EC2) Untag(ctx context.Context, id, key string) error {
	_, err := e.call(ctx, "DeleteTags", url.Values{"ResourceId.1": {id}, "Tag.1.Key": {key}})
	return err
}

// CreateSubnet creates a VPC with one subnet and returns the subnet's id. Both have the same
// addresses.
func (e EC2) CreateSubnet(ctx context.Context, cidr, zone string) (string, error) {
	vpc, err := e.call(ctx, "CreateVpc", url.Values{"CidrBlock": {cidr}})
	if err != nil {
		return "", err
	}
	a, err := e.call(ctx, "CreateSubnet", url.Values{"VpcId": {vpc.VPC}, "CidrBlock": {cidr}, "AvailabilityZone": {zone}})
	return a.Subnet, err
}

// RegisterImage registers an image and returns its id.
func (e EC2) RegisterImage(ctx context.Context, name string) (string, error) {
	a, err := e.call(ctx, "RegisterImage", url.Values{"Name": {name}, "Architecture": {"arm64"}})
	return a.Image, err
}

// CreateImage creates an image of an instance and returns its id.
func (e EC2) CreateImage(ctx context.Context, instance, name string) (string, error) {
	a, err := e.call(ctx, "CreateImage", url.Values{"InstanceId": {instance}, "Name": {name}})
	return a.Image, err
}

// DeregisterImage deregisters an image.
func (e EC2) DeregisterImage(ctx context.Context, id string) error {
	_, err := e.call(ctx, "DeregisterImage", url.Values{"ImageId": {id}})
	return err
}

// Images returns the ids of the images for an architecture, such as x86_64.
func (e EC2) Images(ctx context.Context, architecture string) ([]string, error) {
	a, err := e.call(ctx, "DescribeImages", url.Values{"Filter.1.Name": {"architecture"}, "Filter.1.Value.1": {architecture}})
	return a.Images, err
}

// Zones returns the names of the region's availability zones.
func (e EC2) Zones(ctx context.Context) ([]string, error) {
	a, err := e.call(ctx, "DescribeAvailabilityZones", url.Values{})
	return a.Zones, err
}
