package policy

import "testing"

func TestRemovesStopped(t *testing.T) {
	const file = `version: 1
rules:
  - {name: bastion, match: {ANY, tags: {env: [bastion]}}, address: public, when_stopped: remove}
  - {name: broken, match: {ANY, tags: {env: [broken]}}, when: 'tags["none"] == ""', when_stopped: remove}
  - {name: kept, match: {ANY, tags: {env: [kept]}}, when_stopped: keep}
  - {name: default, match: {ANY, tags: {env: [prod]}}}
  - {name: last, match: {ANY, tags: {env: ["b*", kept]}}, when_stopped: remove}
`
	p := mustParse(t, file)
	for env, want := range map[string]bool{"bastion": true, "broken": false, "kept": false, "prod": false, "none": false, "b": true} {
		f := facts()
		f.Tags["env"] = env
		if d, err := p.Decide(f, cluster(), clock()); err == nil && d.RemoveWhenStopped != want {
			t.Errorf("%s: the decision says %v, want %v", env, d.RemoveWhenStopped, want)
		}
		f.PublicIP = "" // as is that of an instance that is stopped
		if got := p.RemovesStopped(f, clock()); got != want {
			t.Errorf("%s: got %v, want %v", env, got, want)
		}
	}
}
