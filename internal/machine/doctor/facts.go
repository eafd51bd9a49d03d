package doctor

import (
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/agent"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// Facts are what Look or Examine found. A nil error means that the value next to it is good.
type Facts struct {
	Now time.Time
	// Root says that this process may read everything. Without root, sshd's settings and
	// private keys stay unread.
	Root bool

	ConfigFile string
	Config     config.Config
	ConfigErr  error

	StateFile string
	State     *state.State // nil if the machine never enrolled
	StateErr  error
	// Damaged says that the state file is there, but cannot be understood.
	Damaged    bool
	FailedRuns *agent.FailedRuns // since the last that succeeded, or nil
	// Instance is which instance this is, as the last run learned after the boot, or nil.
	Instance *imds.Instance
	// LockedSince is when the run in progress started, or zero if there is none.
	LockedSince time.Time
	LockFile    string

	CAFile    string
	CAs       []byte // content of CAFile
	CAsErr    error
	Files     []File // certificates, of every certified host key
	Disk      []Folder
	DirsFound []string // folders where files belong

	Settings    *sshd.Effective
	SettingsErr error
	Keys        []hostkey.Key // those that Hallmark certifies
	KeysErr     error
	// Problems are what in sshd's settings gets in the way of certificates.
	Problems    []findings.Finding
	ProblemsErr error
	Others      []string // lines with another CA's host certificates or keys

	Listeners    []Listener
	ListenersErr error

	Units    map[string]Unit
	UnitsErr error

	Remote *Remote // nil unless Examine was called
}

// File is a certificate's file.
type File struct {
	Path        string
	Certificate *ssh.Certificate // nil if there is none to read
	Err         error            // why not
}

// Listener is an address at which sshd accepts connections.
type Listener struct {
	Address string
	Offers  []Offer // one for each certified host key
}

// Offer is what sshd presents for a certified host key.
type Offer struct {
	Path        string           // of the certificate's file
	Certificate *ssh.Certificate // nil if sshd presented none
	Err         error            // of the handshake
	Same        bool             // it is the certificate in the file
}

// Folder is a folder that Hallmark writes to.
type Folder struct {
	Path     string
	ReadOnly bool
	Free     uint64 // bytes for root
	Inodes   uint64 // free ones; the file system may have no such limit
	Limited  bool   // whether the number of inodes is limited
	Err      error
}

// Unit is what systemd says about a unit.
type Unit struct {
	Name     string    `json:"name"`
	Loaded   bool      `json:"loaded"`
	Active   bool      `json:"active"`
	State    string    `json:"state"`             // of ActiveState and SubState, as in "active (waiting)"
	Enabled  string    `json:"enabled,omitempty"` // UnitFileState
	Next     time.Time `json:"next,omitzero"`     // a timer's next run
	Last     time.Time `json:"last,omitzero"`     // a timer's last run
	Result   string    `json:"result,omitempty"`  // of a service
	ExitCode int       `json:"exitCode"`          // of a service's last run
	Signal   bool      `json:"signal,omitempty"`  // ExitCode is a signal's number
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
}

// Names of Hallmark's units, and commands that fix things.
const (
	ServiceUnit  = "hallmark.service"
	BootTimer    = "hallmark.timer"
	RenewTimer   = "hallmark-renew.timer"
	startService = "systemctl reset-failed hallmark.service; systemctl start hallmark.service"
	enrollNow    = "hallmark enroll"
	enableTimers = "systemctl enable --now hallmark.timer hallmark-renew.timer"
	// A restart also works behind ssh.socket, where a reload ends sshd. Sessions survive it.
	reloadSSHD     = "sshd -t && { systemctl try-restart ssh.service || systemctl try-restart sshd.service; }"
	installCommand = "hallmark install --from FOLDER"
)
