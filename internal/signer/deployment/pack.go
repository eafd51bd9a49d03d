package deployment

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v4"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// settingsFile is the name of the settings in a function's package.
const settingsFile = "deployment.yaml"

// Summary describes a checked deployment.
type Summary struct {
	Audience string
	Accounts []ec2ref.Account
	Regions  []ec2ref.Region
	// Organization is the id of the organization, or empty.
	Organization string
	// PolicySHA256 is the hash of the policy in the package, or of the built-in one.
	PolicySHA256 string
}

// Check reads a deployment.yaml and every file that it names, as the functions do when
// they start. It requires all of them in the file's folder, because only that is packed.
// Errors name the setting.
func Check(path string) (Summary, error) {
	d, err := readDeployment(path)
	if err != nil {
		return Summary{}, err
	}
	if _, err := d.fleetLogin(); err != nil {
		return Summary{}, fmt.Errorf("%s: %w", path, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Summary{}, err
	}
	named, err := parseDeployment(data) // with file names as written in the file
	if err != nil {
		return Summary{}, err
	}
	files := map[string]string{
		"teleport.roots_file": named.Teleport.RootsFile, "policy_file": named.PolicyFile, "teleport.login.file": named.Teleport.Login.File,
	}
	if l := named.Teleport.FleetLogin; l != nil {
		files["teleport.fleet_login.file"] = l.File
	}
	for _, setting := range slices.Sorted(maps.Keys(files)) {
		if name := files[setting]; name != "" && !filepath.IsLocal(name) {
			return Summary{}, fmt.Errorf("%s: %s: %s is not in the folder of deployment.yaml, which is all that a function's package holds: copy it there",
				path, setting, name)
		}
	}
	return Summary{d.Audience, d.Accounts.ids(), d.Regions, d.organizationID(), d.policy.SHA256}, nil
}

// Pack writes the content of a function's package, "enroll" or "fleet", except for the
// program, into a folder: its settings and the files that they name. Neither function
// gets the other's login: a reader of one package must not be able to act as the other
// function.
func Pack(path, handler, folder string) error {
	if _, err := Check(path); err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	d, err := parseDeployment(data)
	if err != nil {
		return err
	}
	var settings yaml.Node
	if err := yaml.Unmarshal(data, &settings); err != nil {
		return err
	}
	own, err := d.narrow(settings.Content[0], handler)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(&settings), encoder.Close()); err != nil {
		return fmt.Errorf("write the settings of %s: %w", handler, err)
	}
	if err := os.WriteFile(filepath.Join(folder, settingsFile), text.Bytes(), 0o644); err != nil {
		return err
	}
	for _, name := range []string{d.Teleport.RootsFile, d.PolicyFile, own.File} {
		if name == "" {
			continue
		}
		if err := copyFile(filepath.Join(filepath.Dir(path), name), filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}

// narrow keeps only the settings that a function needs, and returns its login.
func (d *deployment) narrow(settings *yaml.Node, handler string) (login, error) {
	teleport := valueOf(settings, "teleport")
	switch handler {
	case "enroll":
		remove(teleport, "fleet_login")
		return d.Teleport.Login, nil
	case "fleet":
		l, err := d.fleetLogin()
		if err != nil {
			return login{}, err
		}
		// A login is a required setting for enroll; here it is the fleet's own.
		var own yaml.Node
		if err := own.Encode(l); err != nil {
			return login{}, err
		}
		*valueOf(teleport, "login") = own
		remove(teleport, "fleet_login")
		teleport.Content = append(teleport.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "fleet_login"}, &own)
		remove(settings, "allow_sources")
		remove(settings, "url_auth")
		return l, nil
	default:
		return login{}, fmt.Errorf("function %q is neither enroll nor fleet", handler)
	}
}

// valueOf returns the value of a key that the mapping has.
func valueOf(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return new(yaml.Node)
}

// remove removes a key and its value from a mapping.
func remove(mapping *yaml.Node, key string) {
	for i := 0; i < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			mapping.Content = slices.Delete(mapping.Content, i, i+2)
			return
		}
	}
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644) // Lambda runs the function as another user
}
