package inventory

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// EC2's answers, with the elements that Hallmark uses. Anything else that answers (a proxy's
// block page, another action, an error sent with status 200) has said nothing about instances,
// so an answer counts only with the root and the list that its action has.

// namespace begins the XML namespace of EC2's answers; the API version follows (Amazon EC2 API
// Reference, "Query responses"). A stand-in for EC2 may omit it.
const namespace = "http://ec2.amazonaws.com/doc/"

// errAnswer marks an answer that is not EC2's answer to the request. It proves nothing, and
// certainly not that an instance does not exist.
var errAnswer = errors.New("not an answer of EC2")

// one is an element that may appear once. encoding/xml alone would keep the last of several.
type one[T any] struct {
	value T
	there bool
}

// UnmarshalXML implements xml.Unmarshaler.
func (o *one[T]) UnmarshalXML(d *xml.Decoder, start xml.StartElement) error {
	if o.there {
		return fmt.Errorf("<%s> appears twice", start.Name.Local)
	}
	o.there = true
	return d.DecodeElement(&o.value, &start)
}

// list is a list in the form that EC2 uses for every list.
type list[T any] struct {
	Items []T `xml:"item"`
}

type (
	instancesAnswer struct {
		XMLName      xml.Name
		Reservations one[list[reservationItem]] `xml:"reservationSet"`
		NextToken    one[string]                `xml:"nextToken"`
	}
	reservationItem struct {
		OwnerID   one[string]             `xml:"ownerId"`
		Instances one[list[instanceItem]] `xml:"instancesSet"`
	}
	instanceItem struct {
		ID               one[string]        `xml:"instanceId"`
		ImageID          one[string]        `xml:"imageId"`
		State            one[string]        `xml:"instanceState>name"`
		PrivateIP        one[string]        `xml:"privateIpAddress"`
		PublicIP         one[string]        `xml:"ipAddress"`
		IPv6             one[string]        `xml:"ipv6Address"`
		AvailabilityZone one[string]        `xml:"placement>availabilityZone"`
		VPC              one[string]        `xml:"vpcId"`
		Subnet           one[string]        `xml:"subnetId"`
		LaunchTime       one[time.Time]     `xml:"launchTime"`
		ProfileARN       one[string]        `xml:"iamInstanceProfile>arn"`
		PrivateDNS       one[string]        `xml:"privateDnsName"`
		Tags             one[list[tagItem]] `xml:"tagSet"`
		// These are only for people to read, so they make no answer invalid: neither a second
		// element nor a strange value is an error.
		HTTPTokens []string `xml:"metadataOptions>httpTokens"`
		HopLimit   []string `xml:"metadataOptions>httpPutResponseHopLimit"`
	}
	imagesAnswer struct {
		XMLName   xml.Name
		Images    one[list[imageItem]] `xml:"imagesSet"`
		NextToken one[string]          `xml:"nextToken"`
	}
	imageItem struct {
		ID      one[string]        `xml:"imageId"`
		OwnerID one[string]        `xml:"imageOwnerId"`
		Tags    one[list[tagItem]] `xml:"tagSet"`
	}
	// Amazon EC2 API Reference, DescribeInstanceImageMetadata and InstanceImageMetadata.
	imageMetadataAnswer struct {
		XMLName   xml.Name
		Instances one[list[imageMetadataItem]] `xml:"instanceImageMetadataSet"`
		NextToken one[string]                  `xml:"nextToken"`
	}
	imageMetadataItem struct {
		ID      one[string] `xml:"instanceId"`
		OwnerID one[string] `xml:"instanceOwnerId"`
		Image   one[struct {
			ID      one[string] `xml:"imageId"`
			OwnerID one[string] `xml:"imageOwnerId"`
		}] `xml:"imageMetadata"`
	}
	tagItem struct {
		Key   one[string] `xml:"key"`
		Value one[string] `xml:"value"`
	}
	errorAnswer struct {
		XMLName xml.Name
		Errors  one[struct {
			Error []struct {
				Code    one[string] `xml:"Code"`
				Message one[string] `xml:"Message"`
			}
		}]
	}
)

// parseInstances reads the answer to DescribeInstances. Each instance in the reservations must
// have an id and a state, and must appear only once.
func parseInstances(data []byte) (instancesAnswer, error) {
	var a instancesAnswer
	err := decode(data, "DescribeInstancesResponse", &a, &a.XMLName)
	if err == nil && !a.Reservations.there {
		err = fmt.Errorf("%w: it has no reservationSet", errAnswer)
	}
	seen := make(map[string]bool)
	for _, reservation := range a.Reservations.value.Items {
		for _, i := range reservation.Instances.value.Items {
			switch id := i.ID.value; {
			case err != nil:
			case id == "" || i.State.value == "":
				err = fmt.Errorf("%w: an instance %.32q has no id or no state", errAnswer, id)
			case seen[id]:
				err = fmt.Errorf("%w: instance %.32q appears twice", errAnswer, id)
			}
			seen[i.ID.value] = true
		}
	}
	return a, err
}

// parseImages reads the answer to DescribeImages.
func parseImages(data []byte) (imagesAnswer, error) {
	var a imagesAnswer
	err := decode(data, "DescribeImagesResponse", &a, &a.XMLName)
	if err == nil && !a.Images.there {
		err = fmt.Errorf("%w: it has no imagesSet", errAnswer)
	}
	seen := make(map[string]bool)
	for _, i := range a.Images.value.Items {
		if err == nil && seen[i.ID.value] {
			err = fmt.Errorf("%w: image %.32q appears twice", errAnswer, i.ID.value)
		}
		seen[i.ID.value] = true
	}
	return a, err
}

// parseImageMetadata reads the answer to DescribeInstanceImageMetadata. Each item must have an
// instance, an account, and an image with an owner.
func parseImageMetadata(data []byte) (imageMetadataAnswer, error) {
	var a imageMetadataAnswer
	err := decode(data, "DescribeInstanceImageMetadataResponse", &a, &a.XMLName)
	if err == nil && !a.Instances.there {
		err = fmt.Errorf("%w: it has no instanceImageMetadataSet", errAnswer)
	}
	for _, i := range a.Instances.value.Items {
		image := i.Image.value
		if err == nil && (i.ID.value == "" || i.OwnerID.value == "" || image.ID.value == "" || image.OwnerID.value == "") {
			err = fmt.Errorf("%w: an item lacks the instance %.32q, its account, its image or the image's owner", errAnswer, i.ID.value)
		}
	}
	if err == nil && len(a.Instances.value.Items) > 1 {
		err = fmt.Errorf("%w: it is about %d instances", errAnswer, len(a.Instances.value.Items))
	}
	return a, err
}

// parseError reads the code and the message of an error (Amazon EC2 API Reference, "Error
// responses"). Without a code, the error is not EC2's.
func parseError(data []byte) (code, message string, ok bool) {
	var a errorAnswer
	if decode(data, "Response", &a, &a.XMLName) != nil || len(a.Errors.value.Error) == 0 {
		return "", "", false
	}
	first := a.Errors.value.Error[0]
	return first.Code.value, first.Message.value, first.Code.value != ""
}

// decode reads one XML document with the given root, and nothing after it.
func decode(data []byte, root string, answer any, name *xml.Name) error {
	if !utf8.Valid(data) { // it names another character set, or none
		return fmt.Errorf("%w: it is not UTF-8", errAnswer)
	}
	d := xml.NewDecoder(bytes.NewReader(replaceForbidden(data)))
	if err := d.Decode(answer); err != nil {
		return fmt.Errorf("%w: decode it: %w", errAnswer, err)
	}
	if name.Local != root || name.Space != "" && !strings.HasPrefix(name.Space, namespace) {
		return fmt.Errorf("%w: it is a <%.64s> of namespace %.64q, not a <%s>", errAnswer, name.Local, name.Space, root)
	}
	switch token, err := nextToken(d); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fmt.Errorf("%w: after its end: %w", errAnswer, err)
	default:
		return fmt.Errorf("%w: %T follows its end", errAnswer, token)
	}
}

// nextToken returns the next token that is not white space or a comment.
func nextToken(d *xml.Decoder) (xml.Token, error) {
	for {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		text, isText := token.(xml.CharData)
		if _, isComment := token.(xml.Comment); isComment || isText && len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		return token, nil
	}
}

// replaceForbidden replaces characters that XML 1.0 forbids, and references to them, with
// U+FFFD. A tag may contain such a character, and EC2 returns it. One machine's tag must not
// make all other machines unreadable.
func replaceForbidden(data []byte) []byte {
	if bytes.ContainsFunc(data, isForbidden) {
		data = bytes.Map(func(r rune) rune {
			if isForbidden(r) {
				return utf8.RuneError
			}
			return r
		}, data)
	}
	return replaceReferences(data)
}

// isForbidden reports whether XML 1.0 forbids the character (section 2.2, "Char").
func isForbidden(r rune) bool {
	return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r >= 0xD800 && r <= 0xDFFF ||
		r == 0xFFFE || r == 0xFFFF || r > utf8.MaxRune
}

// maxReferenceDigits bounds how much of a reference to check: 0x10FFFF has eight characters.
// The decoder handles longer ones.
const maxReferenceDigits = 10

// replaceReferences replaces references to forbidden characters (section 4.1, "CharRef").
func replaceReferences(data []byte) []byte {
	var clean []byte
	for {
		before, rest, found := bytes.Cut(data, []byte("&#"))
		if !found {
			break
		}
		digits, _, closed := bytes.Cut(rest[:min(len(rest), maxReferenceDigits+1)], []byte(";"))
		if closed && isForbiddenReference(string(digits)) {
			clean = append(append(clean, before...), "&#xFFFD;"...)
			data = rest[len(digits)+1:]
			continue
		}
		clean = append(append(clean, before...), "&#"...)
		data = rest
	}
	if clean == nil {
		return data
	}
	return append(clean, data...)
}

func isForbiddenReference(digits string) bool {
	base := 10
	if hex, ok := strings.CutPrefix(digits, "x"); ok {
		digits, base = hex, 16
	}
	code, err := strconv.ParseUint(digits, base, 32)
	return err == nil && (code > utf8.MaxRune || isForbidden(rune(code)))
}
