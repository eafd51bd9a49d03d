package protocol

// InvocationVersion is the version of Invocation and InvocationAnswer.
const InvocationVersion = 1

// Invocation is the event with which a machine calls the signer through Lambda's Invoke
// operation (https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html) instead of HTTP.
// It has no field for the caller, because the caller could write anything into it.
type Invocation struct {
	// Hallmark is InvocationVersion.
	Hallmark int `json:"hallmark"`
	// Method is the method of the equivalent HTTP request: POST to enroll, GET for the
	// cluster's CAs.
	Method string `json:"method"`
	// IfNoneMatch is an entity tag, for GET.
	IfNoneMatch string `json:"if_none_match,omitempty"`
	// Health is the value of HealthHeader, for GET. Signers that do not know it refuse the
	// event.
	Health string `json:"health,omitempty"`
	// Body is a Request, for POST.
	Body string `json:"body,omitempty"`
}

// InvocationAnswer is the function's answer to an Invocation.
type InvocationAnswer struct {
	// Status is an HTTP status code.
	Status int `json:"status"`
	// Header has the headers of the HTTP answer.
	Header map[string]string `json:"header,omitempty"`
	// Body is a Response, a list of CAs or an ErrorResponse.
	Body string `json:"body,omitempty"`
}
