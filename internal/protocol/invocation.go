package protocol

// InvocationVersion is the version of Invocation and InvocationAnswer.
const InvocationVersion = 1

// Invocation is the event of a machine that calls the signer by Lambda's Invoke operation
// (https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html) instead of by HTTP. It
// has no field for who calls: the caller would write it.
type Invocation struct {
	// Hallmark is InvocationVersion.
	Hallmark int `json:"hallmark"`
	// Method is that of the HTTP request in whose place the invocation stands: POST to
	// enroll, GET for the cluster's CAs.
	Method string `json:"method"`
	// IfNoneMatch is an entity tag, for GET.
	IfNoneMatch string `json:"if_none_match,omitempty"`
	// Body is a Request, for POST.
	Body string `json:"body,omitempty"`
}

// InvocationAnswer is what the function returns for an Invocation.
type InvocationAnswer struct {
	// Status is an HTTP status code.
	Status int `json:"status"`
	// Header has the headers of the HTTP answer.
	Header map[string]string `json:"header,omitempty"`
	// Body is a Response, a list of CAs or an ErrorResponse.
	Body string `json:"body,omitempty"`
}
